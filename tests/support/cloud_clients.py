"""Google's clients of Cloud Tasks, in Python and in Node.js, over gRPC and REST, behind one small interface.

Requests and responses are dictionaries in proto3 JSON, so one suite can run with each client:

    with client("node-grpc", address) as call:
        call("CreateQueue", {"parent": …, "queue": {…}})
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
from google.api_core import exceptions
from google.auth.credentials import AnonymousCredentials
from google.cloud import tasks_v2
from google.cloud.tasks_v2.services.cloud_tasks import transports
from google.protobuf import json_format

from tests.support.repository import ROOT

CLIENTS = ("python-grpc", "python-rest", "node-grpc", "node-rest")
NODE_MODULES = ROOT / ".venvs" / "node-client" / "node_modules"

Call = Callable[[str, dict[str, Any]], dict[str, Any]]


class RefusedCallError(Exception):
    """A call failed, with a code of gRPC and a message."""

    def __init__(self, code: int, message: str) -> None:
        self.code = next(status for status in grpc.StatusCode if status.value[0] == code)
        self.message = message
        super().__init__(f"{self.code.name}: {message}")


def python_client(address: str, *, rest: bool = False) -> tasks_v2.CloudTasksClient:
    """Return Google's client for Python."""
    transport: Any
    if rest:
        anonymous = AnonymousCredentials()  # type: ignore[no-untyped-call]
        transport = transports.CloudTasksRestTransport(host=address, credentials=anonymous, url_scheme="http")
    else:
        transport = transports.CloudTasksGrpcTransport(channel=grpc.insecure_channel(address), host=address)
    return tasks_v2.CloudTasksClient(transport=transport)


@contextlib.contextmanager
def client(kind: str, address: str) -> Iterator[Call]:
    """Yield a function that calls the API with one of :data:`CLIENTS`; it raises :class:`RefusedCallError`."""
    language, transport = kind.split("-")
    if language == "python":
        with python_client(address, rest=transport == "rest") as made:
            yield _PythonCalls(made)
        return
    with _node(address, transport) as calls:
        yield calls


class _PythonCalls:
    def __init__(self, client: tasks_v2.CloudTasksClient) -> None:
        self._client = client

    def __call__(self, method: str, request: dict[str, Any]) -> dict[str, Any]:
        kind = getattr(tasks_v2, f"{method}Request")
        message = json_format.ParseDict(request, kind.pb()())
        call = getattr(self._client, "".join(f"_{c.lower()}" if c.isupper() else c for c in method)[1:])
        try:
            response = call(request=kind.wrap(message))
            if method.startswith("List"):
                # The first page, as it came.
                response = next(response.pages)
            elif method.startswith("Batch"):
                operation = response.operation
                return json_format.MessageToDict(operation)
        except exceptions.GoogleAPICallError as error:
            raise _refused(error) from error
        return {} if response is None else json_format.MessageToDict(type(response).pb(response))


def _refused(error: exceptions.GoogleAPICallError) -> RefusedCallError:
    # The client's own errors of REST calls have neither the status nor the message alone.
    content = None if error.response is None or not hasattr(error.response, "json") else error.response.json()
    if content is None:
        assert error.grpc_status_code is not None
        return RefusedCallError(error.grpc_status_code.value[0], str(error.message))
    return RefusedCallError(grpc.StatusCode[content["error"]["status"]].value[0], content["error"]["message"])


@contextlib.contextmanager
def _node(address: str, transport: str) -> Iterator[Call]:
    program = shutil.which("node")
    assert program is not None, "Node.js is not installed; see CONTRIBUTING.rst"
    assert NODE_MODULES.is_dir(), "Google's client is not installed: say `make .venvs/node-client`"
    script = Path(__file__).with_suffix(".js")
    process = subprocess.Popen(
        [program, str(script), address, transport, str(NODE_MODULES)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def call(method: str, request: dict[str, Any]) -> dict[str, Any]:
        line = {"method": method[0].lower() + method[1:], "type": f"{method}Request", "request": request}
        stdin.write(json.dumps(line) + "\n")
        stdin.flush()
        answered = stdout.readline()
        assert answered, "the client's process ended"
        answer = json.loads(answered)
        if "error" in answer:
            raise RefusedCallError(answer["error"]["code"], answer["error"]["message"])
        response: dict[str, Any] = answer["response"]
        return response

    try:
        yield call
    finally:
        stdin.close()
        process.wait(30)
        stdout.close()
