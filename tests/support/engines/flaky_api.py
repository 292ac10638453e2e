"""An API server that fails every other call that adds tasks, and otherwise forwards calls to the local server.

The app's SDK calls it as it calls App Engine's own API server.
"""

from __future__ import annotations

import http.client
import re
import threading
from typing import Any, Final

from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as taskqueue_pb
from google.appengine.ext.remote_api import remote_api_bytes_pb2 as remote_api_pb

from tests.support.faults import (
    BOUND_SECONDS,
    ApplicationError,
    Closed,
    Code,
    Fault,
    FaultyServer,
    Half,
    Handler,
    HttpStatus,
    Results,
    RpcError,
    Silent,
    Unreadable,
    names_of,
)

FAULTS: Final[tuple[Fault, ...]] = (
    Results(Code.TRANSIENT_ERROR),
    Closed(added=True),
    Half(),
    RpcError(remote_api_pb.RpcError.UNKNOWN),
    Silent(added=True),
    ApplicationError(Code.TRANSIENT_ERROR),
    HttpStatus(added=True),
    Closed(),
    Results(Code.INTERNAL_ERROR),
    RpcError(remote_api_pb.RpcError.DEADLINE_EXCEEDED, added=True),
    Unreadable(added=True),
    Results(),
    RpcError(remote_api_pb.RpcError.CANCELLED),
    Results(Code.DATASTORE_TIMEOUT),
    HttpStatus(),
    RpcError(remote_api_pb.RpcError.UNKNOWN, added=True),
    ApplicationError(Code.INTERNAL_ERROR),
    Results(Code.SKIPPED),
)
"""The faults, one after the other. The fifth one takes a while."""
_GENERATED: Final = re.compile("[0-9a-f]{32}")


class FlakyApi(FaultyServer):
    """The server. ``upstream`` is the address of the local server."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._number = 0
        self._counting = threading.Lock()
        super().__init__()

    def take_adds(self) -> list[list[str]]:
        """Return the task names of each add since the last call."""
        found = list(self.attempts)
        del self.attempts[: len(found)]
        return found

    def answer(self, handler: Handler, call: Any) -> None:
        """Forward a call; fail every other one that adds tasks outside of a transaction.

        An add to a transaction has a single attempt. If it fails, the app repeats its transaction.
        """
        if (call.service_name, call.method) == ("taskqueue", "BulkAdd"):
            request = taskqueue_pb.TaskQueueBulkAddRequest.FromString(call.request)
            if not any(_is_transactional(add) for add in request.add_request):
                self.answer_add(handler, request, lambda taken: self._added(call, taken))
                return
        handler.send_bytes(self._forwarded(call))

    def next_fault(self, request: Any) -> Fault | None:
        """Record an attempt, and return a fault for every other one.

        A task of a name that the app chose is not added before the call fails: the repetition would find the name
        taken, and can't know by whom.
        """
        super().next_fault(request)
        with self._counting:
            number = self._number
            self._number += 1
        if number % 2:
            return None
        fault = FAULTS[number // 2 % len(FAULTS)]
        are_generated = all(_GENERATED.fullmatch(name) for name in names_of(request.add_request))
        return fault if are_generated or not (fault.added or isinstance(fault, Half)) else Closed()

    def _added(self, call: Any, request: Any) -> Any:
        changed = remote_api_pb.Request()
        changed.CopyFrom(call)
        changed.request = request.SerializeToString()
        return remote_api_pb.Response.FromString(self._forwarded(changed))

    def _forwarded(self, call: Any) -> bytes:
        connection = http.client.HTTPConnection(self._upstream, timeout=BOUND_SECONDS)
        try:
            connection.request(
                "POST", "/rpc_http", call.SerializeToString(), {"Content-Type": "application/octet-stream"}
            )
            return connection.getresponse().read()
        finally:
            connection.close()


def _is_transactional(add: Any) -> bool:
    return bool(add.HasField("transaction") or add.HasField("datastore_transaction"))
