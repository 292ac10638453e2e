"""Lead the SDK of a command's own process to the local server that the environment names."""

from __future__ import annotations

import os


def connect() -> None:
    """Answer the SDK's calls as ``API_HOST``, ``API_PORT`` and ``HTTP_X_APPENGINE_API_TICKET`` say, if they are set.

    An app does this with ``wrap_wsgi_app``, for the time of a request.
    """
    if "API_HOST" not in os.environ:
        return
    from google.appengine.api import full_app_id
    from google.appengine.runtime import default_api_stub

    full_app_id.normalize()
    default_api_stub.Register(default_api_stub.DefaultApiStub())
    # Without it the ticket is looked for in a request.
    default_api_stub.DefaultApiStub.SetUseRequestSecurityTicketForThread(True)
