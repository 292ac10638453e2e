"""An app process for the engines without a server of ours: a small App Engine front end and the SDK's stubs.

``python -m tests.support.engines.host stub`` has the SDK's own queue stub in this process, which runs its tasks itself.
``python -m tests.support.engines.host cloudtasks`` has no queue, because the SDK uses Cloud Tasks.
``python -m tests.support.engines.host elsewhere PORT`` is an app for the local server, which answers the SDK's calls.
When ready, each prints its port.
"""

from __future__ import annotations

import http.client
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from google.appengine.api import apiproxy_stub_map, datastore_file_stub, request_info
from google.appengine.api.app_identity import app_identity_stub
from google.appengine.api.memcache import memcache_stub
from google.appengine.api.taskqueue import taskqueue_stub
from google.appengine.datastore import datastore_stub_util
from waitress.server import create_server

from deferred_middleware.server.delivery.frontend import Frontend
from deferred_middleware.wire import protocol

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


class _ToThisProcess(request_info.Dispatcher):  # type: ignore[misc] # the SDK has no types
    """Sends the stub's tasks to this process, as the development server's dispatcher does."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._token = token

    def add_request(self, method: str, relative_url: str, headers: list[tuple[str, str]], body: bytes, **_: Any) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            sent = {**dict(headers), protocol.SERVER_TOKEN_HEADER: self._token}
            connection.request(method, relative_url, body, sent)
            response = connection.getresponse()
            response.read()
        finally:
            connection.close()
        return request_info.ResponseTuple(str(response.status), [], b"")


class _Requests(request_info.RequestInfo):  # type: ignore[misc] # the SDK has no types
    """Gives the stub the dispatcher for its tasks."""

    def __init__(self, dispatcher: Any) -> None:
        self._to = dispatcher

    def get_dispatcher(self) -> Any:
        return self._to

    def get_module(self, request_id: str | None) -> str:
        return os.environ["GAE_SERVICE"]


def _unmarked(app: WSGIApplication) -> WSGIApplication:
    """Remove the mark of the local server's deliveries, because these are not."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ.pop(protocol.LOCAL_SERVER_ENVIRON_KEY, None)
        return app(environ, start_response)

    return answer


def serve_elsewhere(port: int) -> None:
    """Serve until killed, on a port that the local server knows."""
    from tests.support.engines.app import app

    server: Any = create_server(app, host="127.0.0.1", port=port, threads=8)
    sys.stdout.write(f"{server.effective_port}\n")
    sys.stdout.flush()
    server.run()


def main(engine: str) -> None:
    """Serve until killed."""
    token = os.environ["DELIVERY_TOKEN"]
    frontend: list[WSGIApplication] = []
    server: Any = create_server(
        lambda environ, start_response: frontend[0](environ, start_response), host="127.0.0.1", port=0, threads=4
    )
    stubs = apiproxy_stub_map.APIProxyStubMap()
    stubs.RegisterStub(
        "datastore_v3",
        datastore_file_stub.DatastoreFileStub(
            os.environ["GAE_APPLICATION"], None, consistency_policy=datastore_stub_util.MasterSlaveConsistencyPolicy()
        ),
    )
    stubs.RegisterStub("memcache", memcache_stub.MemcacheServiceStub())
    stubs.RegisterStub("app_identity_service", app_identity_stub.AppIdentityServiceStub())
    if engine == "stub":
        queue = taskqueue_stub.TaskQueueServiceStub(
            root_path=os.environ["QUEUE_YAML_FOLDER"],
            auto_task_running=True,
            request_data=_Requests(_ToThisProcess(server.effective_port, token)),
            default_http_server=os.environ["DEFAULT_HOSTNAME"],
        )
        stubs.RegisterStub("taskqueue", queue)
        queue.StartBackgroundExecution()  # before wrap_wsgi_app replaces how threads start

    from tests.support.engines.app import app

    apiproxy_stub_map.apiproxy = stubs
    frontend.append(
        Frontend(
            _unmarked(app),
            delivery_token=token,
            api_ticket="ticket",
            default_hostname=os.environ["DEFAULT_HOSTNAME"],
        )
    )
    sys.stdout.write(f"{server.effective_port}\n")
    sys.stdout.flush()
    server.run()


if __name__ == "__main__":
    if sys.argv[1] == "elsewhere":
        serve_elsewhere(int(sys.argv[2]))
    else:
        main(sys.argv[1])
