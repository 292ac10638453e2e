"""A taskqueue engine for tests that answers many adds at once, keeps what it was given, and can be told to fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from google.appengine.api import apiproxy_stub
from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as pb
from google.appengine.runtime import apiproxy_errors

OK = pb.TaskQueueServiceError.OK


class Engine(apiproxy_stub.APIProxyStub):  # type: ignore[misc] # the SDK has no types
    """A taskqueue stub that answers in other threads, as the platform does.

    ``answer`` gets the adds of an RPC and returns a code for each, or raises.
    """

    THREADSAFE = True

    def __init__(self, answer: Callable[[Sequence[Any]], Sequence[int]] | None = None) -> None:
        super().__init__("taskqueue")
        self.answer = answer or (lambda adds: [OK] * len(adds))
        self.rpcs: list[list[str]] = []
        """The names in each RPC, in the order in which the RPCs came."""
        self.sizes: list[int] = []
        """The bytes of each RPC."""
        self.tasks: dict[str, str] = {}
        """The queue of each task that it has, by its name."""
        self.at_once = 0
        """The most RPCs that were under way at once."""
        self._under_way = 0
        self._lock = threading.Lock()

    def MakeSyncCall(self, service: str, method: str, request: Any, response: Any, request_id: Any = None) -> None:
        """Answer a BulkAdd."""
        assert (service, method) == ("taskqueue", "BulkAdd")
        adds = list(request.add_request)
        with self._lock:
            self._under_way += 1
            self.at_once = max(self.at_once, self._under_way)
            self.rpcs.append([add.task_name.decode() for add in adds])
            self.sizes.append(request.ByteSize())
        try:
            codes = self.answer(adds)
            with self._lock:
                for add, code in zip(adds, codes, strict=True):
                    name = add.task_name.decode()
                    if code == OK and name in self.tasks:
                        code = pb.TaskQueueServiceError.TASK_ALREADY_EXISTS
                    elif code == OK:
                        self.tasks[name] = add.queue_name.decode()
                    response.taskresult.add().result = code
        finally:
            with self._lock:
                self._under_way -= 1


def whole(code: int) -> Exception:
    """Return what fails a whole add."""
    error: Exception = apiproxy_errors.ApplicationError(code, "")
    return error
