"""The SDK's ``taskqueue.Task`` for a task that ``defer`` enqueued."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.appengine.api import app_identity

from deferred_middleware.wire import protocol

if TYPE_CHECKING:
    from deferred_middleware.enqueue.enqueued_task import EnqueuedTask

    class UntypedTask:
        """The SDK's class for type checkers. The SDK has no types."""

        def __init__(self, **options: Any) -> None: ...

        def __getattr__(self, name: str) -> Any: ...

else:
    from google.appengine.api.taskqueue import Task as UntypedTask


class SdkTask(UntypedTask):
    """A ``taskqueue.Task`` that is enqueued already.

    The SDK's ``add()`` sets a task's name, queue and state in private attributes. Here these properties read the task
    that our ``defer`` returned. In a ``defer_batch`` their values change when the batch ends.
    """

    payload: bytes | None = None
    """The body of the task's request."""
    size: int = 0
    """The size of the task in bytes."""

    def __init__(self, enqueued: EnqueuedTask) -> None:
        headers = dict(enqueued.headers)
        target = None if "host" in map(str.lower, headers) else enqueued.target
        hostname = app_identity.get_default_version_hostname()
        if target is not None and hostname is not None:
            # The constructor derives the target from the host. For the opposite it may call the modules API.
            headers["Host"], target = f"{target}.{hostname}", None
        # Without the payload: the constructor would compare the size with App Engine's limit, and raise after the
        # engine, which may have another limit, has accepted the task.
        super().__init__(
            method=enqueued.method,
            url=enqueued.url,
            headers=headers,
            target=target,
            eta=enqueued.eta,
            retry_options=enqueued.retry_options,
            dispatch_deadline_usec=enqueued.dispatch_deadline_usec,
        )
        self.payload = enqueued.payload
        self.size = enqueued.size
        self._enqueued = enqueued

    def __repr__(self) -> str:
        # An app may show it to anybody, and the signature proves to any of our handlers that the task is genuine.
        signature = dict(self._enqueued.headers).get(protocol.SIGNATURE_HEADER)
        shown = str(super().__repr__())
        return shown.replace(signature, "(not shown)") if signature else shown

    @property
    def name(self) -> str | None:
        """The task's name; None if it is not known yet."""
        return self._enqueued.name

    @property
    def queue_name(self) -> str:
        """The name of the task's queue."""
        return self._enqueued.queue_name

    @property
    def was_enqueued(self) -> bool:
        """Whether the queue has accepted the task."""
        return self._enqueued.was_enqueued
