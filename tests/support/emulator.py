"""A running ``deferred-middleware emulate`` for the tests."""

from __future__ import annotations

import http.client
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.running import WAIT_SECONDS, Server

PARENT = "projects/my-project/locations/europe-west1"
_NUMBERS = itertools.count(1)


class Emulator(Server):
    """An emulator in ``directory``."""

    def __init__(self, directory: Path, *arguments: str, environ: Mapping[str, str] | None = None) -> None:
        super().__init__(
            directory,
            ["--port=0", "--admin-port=0", f"--ready-file={directory / 'ready.json'}", *arguments],
            environ or {},
            command="emulate",
        )

    def control(self, name: str, content: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Make one of the requests for tests, and return its answer."""
        answer = self.http("POST", f"/emulator/v1/{name}", json.dumps(content or {}).encode())
        assert answer[0] == 200, answer
        return answer[1]

    def http(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Make a request at the API's port, and return the status and the JSON of the response."""
        return ask(self.cloud_tasks, method, path, body, headers)


def ask(
    address: str, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, dict[str, Any]]:
    """Make a request at the port of an emulator, and return the status and the JSON of the response."""
    host, _, port = address.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=WAIT_SECONDS)
    try:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    return response.status, json.loads(content) if content else {}


def queue_name(prefix: str = "queue") -> str:
    """Return the full name of a queue that no other test uses."""
    return f"{PARENT}/queues/{prefix}-{next(_NUMBERS)}"
