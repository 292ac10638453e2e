"""Threads that add tasks while the server is killed, and the app that runs the tasks."""

from __future__ import annotations

import http.client
import random
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as taskqueue_pb
from google.appengine.ext.remote_api import remote_api_bytes_pb2 as remote_api_pb

from tests.support.threadedserver import ThreadedHTTPServer

_ANSWER_SECONDS = 30.0


class Events:
    """Counts events, so that the test can kill the server after a number of them."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._number = 0

    def note(self) -> None:
        """Count one event."""
        with self._condition:
            self._number += 1
            self._condition.notify_all()

    def wait_for_more(self, number: int, timeout_seconds: float) -> bool:
        """Wait until ``number`` more events have happened; return whether they have."""
        with self._condition:
            goal = self._number + number
            return self._condition.wait_for(lambda: self._number >= goal, timeout_seconds)


class App:
    """An app that runs elsewhere and records the task of each request; it keeps running while servers are killed."""

    def __init__(self, events: Events) -> None:
        self.runs: Counter[str] = Counter()
        self._lock = threading.Lock()
        app = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                with app._lock:
                    app.runs[self.headers["X-AppEngine-TaskName"]] += 1
                events.note()
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Log nothing."""

        self._server = ThreadedHTTPServer(("127.0.0.1", 0), Handler)
        # The app may still be answering a request whose server was killed.
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign] # only for this server
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stop the app."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Adder:
    """A thread that adds tasks through the taskqueue API until the server dies, and lists the acknowledged names."""

    def __init__(self, prefix: str, address: str, ticket: str, chance: random.Random, note: Callable[[], None]) -> None:
        self.acknowledged: list[str] = []
        self.asked: list[str] = []
        self.failure: BaseException | None = None
        self._prefix = prefix
        self._address = address.removeprefix("http://")
        self._ticket = ticket
        self._chance = chance
        self._note = note
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """Stop adding, and wait for the end of the last add."""
        self._enough.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=_ANSWER_SECONDS)
        try:
            while not self._enough.is_set():
                number = self._chance.choice([1, 1, 1, 1, 5, 20])
                names = [f"{self._prefix}-{len(self.asked) + index}" for index in range(number)]
                self.asked += names
                add(connection, self._ticket, names)
                self.acknowledged += names
                self._note()
        except (OSError, http.client.HTTPException):
            pass  # the server was killed, and the last add was not acknowledged
        except BaseException as error:  # noqa: BLE001 - the test raises it in its own thread
            self.failure = error
        finally:
            connection.close()


def add(connection: http.client.HTTPConnection, ticket: str, names: list[str], body: bytes = b"work") -> None:
    """Add tasks in one call as the SDK's client does; raise an error unless all were acknowledged."""
    request = taskqueue_pb.TaskQueueBulkAddRequest()
    for name in names:
        task = request.add_request.add()
        task.queue_name = b"default"
        task.task_name = name.encode()
        task.url = b"/work"
        task.method = taskqueue_pb.TaskQueueAddRequest.POST
        task.eta_usec = 1
        task.body = body
    call = remote_api_pb.Request(
        service_name="taskqueue", method="BulkAdd", request=request.SerializeToString(), request_id=ticket
    )
    connection.request("POST", "/rpc_http", call.SerializeToString(), {"Content-Type": "application/octet-stream"})
    answer = remote_api_pb.Response.FromString(connection.getresponse().read())
    if answer.HasField("application_error"):
        raise AssertionError(f"error {answer.application_error.code}: {answer.application_error.detail}")
    assert not answer.HasField("rpc_error"), answer.rpc_error
    response = taskqueue_pb.TaskQueueBulkAddResponse.FromString(answer.response)
    assert {result.result for result in response.taskresult} == {0}, response
