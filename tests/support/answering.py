"""A taskqueue engine for tests. It answers adds concurrently, records them, and can fail them."""

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

    ``answer`` gets the adds of an RPC. It returns a code for each, or raises an exception.
    """

    THREADSAFE = True

    def __init__(self, answer: Callable[[Sequence[Any]], Sequence[int]] | None = None) -> None:
        super().__init__("taskqueue")
        self.answer = answer or (lambda adds: [OK] * len(adds))
        self.rpcs: list[list[str]] = []
        """The task names in each RPC, in the order of arrival."""
        self.sizes: list[int] = []
        """The size of each RPC in bytes."""
        self.tasks: dict[str, str] = {}
        """The queue of each added task, by task name."""
        self.at_once = 0
        """The highest number of concurrent RPCs."""
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
    """Return the exception that fails a whole add with ``code``."""
    error: Exception = apiproxy_errors.ApplicationError(code, "")
    return error
