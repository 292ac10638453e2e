"""The request of a cron job, as App Engine sends it: a GET with the header ``X-Appengine-Cron: true``.

Source: https://cloud.google.com/appengine/docs/standard/scheduling-jobs-with-cron-yaml#securing_urls_for_cron .
"""

from __future__ import annotations

import http.client

from deferred_middleware.server.config.services import Service
from deferred_middleware.wire import protocol

CRON_HEADER = "X-Appengine-Cron"
EXCERPT_BYTES = 4096
_TIMEOUT_SECONDS = 600.0


def send_cron_request(service: Service, url: str, *, host: str, delivery_token: str) -> tuple[int, bytes]:
    """Send the request, wait for its response, and return the status and the beginning of the body.

    Raises :class:`OSError` if there is no response. ``host`` is the ``Host`` header. The ``delivery_token`` is not sent
    to services that run elsewhere.
    """
    headers = {
        "Host": host,
        "User-Agent": protocol.TASK_QUEUE_USER_AGENT,
        CRON_HEADER: "true",
        protocol.QUEUE_NAME_HEADER: "__cron",
        protocol.USER_IP_HEADER: protocol.TASK_QUEUE_IP,
    }
    if not service.external:
        headers[protocol.SERVER_TOKEN_HEADER] = delivery_token
    connection = http.client.HTTPConnection(service.host.strip("[]"), service.port, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("GET", url, headers=headers)
        response = connection.getresponse()
        body = response.read(EXCERPT_BYTES)
        while response.read(1 << 16):
            pass
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
    finally:
        connection.close()
    return response.status, body
