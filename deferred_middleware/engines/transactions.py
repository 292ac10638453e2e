"""Tasks that are enqueued if and when a datastore transaction commits: of the SDK's ndb and db, or google-cloud-ndb."""

from __future__ import annotations

import collections
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from deferred_middleware.errors import OptionError
from deferred_middleware.errors.sdk import CrossGroupError, EnqueueError, TransactionError, TransactionLimitError
from deferred_middleware.errors.sdk_types import HAS_SDK, datastore_errors
from deferred_middleware.wire import entities, protocol

if TYPE_CHECKING:
    from deferred_middleware.calls.call import Call

MAX_TRANSACTIONS: Final = 1000
"""The maximum number of transactions that are counted at a time. The oldest is dropped first."""


_MISSING: Final = "_transactional=True needs a datastore transaction around the defer(), and there is none."
_NOT_INSTALLED: Final = (
    "In this process a transaction is one of google-cloud-ndb, which is not installed: "
    "pip install 'deferred_middleware[cloud]'"
)


def is_wanted(call: Call, queue: str, *, has_outbox: bool) -> bool:
    """Tell whether ``call`` must be added in the current transaction.

    With an outbox, a transaction of google-cloud-ndb counts too. The taskqueue API knows those of the SDK only.

    Raises:
        TransactionError: the call is transactional, and there is no transaction.
        OptionError: there is a transaction, and the call has a name.
    """
    wanted = call.options.transactional
    if not wanted:
        return False
    name = call.options.name
    if not (entities.in_transaction() if has_outbox else entities.in_sdk_transaction()):
        if wanted == "auto":
            return False
        raise TransactionError(
            call.label,
            queue,
            name,
            _MISSING if HAS_SDK or entities.is_cloud_installed() else f"{_MISSING} {_NOT_INSTALLED}",
        )
    if name is not None:
        raise OptionError(
            "_name",
            name,
            "a task added in a transaction can't have a name of its own, and there is a transaction around this "
            "defer(). Leave the name out, or say _transactional=False to enqueue it whether or not that commits.",
        )
    return True


class TaskLimitReachedError(Exception):
    """The transaction has the maximum number of tasks already."""


class TransactionMonitor:
    """Counts the tasks of each transaction, and calls functions after its commit.

    It uses the SDK's API hooks. Each request names its transaction, and a commit succeeded if its call didn't raise
    (SDK: ``api/apiproxy_stub_map.py``, ``GetPreCallHooks`` and ``GetPostCallHooks``).
    """

    def __init__(self) -> None:
        self._adding = threading.local()
        self._lock = threading.Lock()
        self._transactions: collections.OrderedDict[int, _Transaction] = (
            collections.OrderedDict()
        )  # guarded by the lock

    @contextlib.contextmanager
    def adding(self, after_commit: Callable[[], object] | None = None) -> Iterator[None]:
        """Count the task that is added in the block.

        ``after_commit`` is called without arguments after the transaction has committed. If the transaction has the
        maximum number of tasks, :class:`TaskLimitReachedError` is raised before the API is called.
        """
        self._install()
        self._adding.after_commit = after_commit
        self._adding.counted_in = None
        self._adding.active = True
        try:
            yield
        except BaseException:
            transaction = self._adding.counted_in
            if transaction is not None:
                with self._lock:
                    transaction.tasks -= 1
                    if after_commit is not None:
                        transaction.after_commit.remove(after_commit)
            raise
        finally:
            self._adding.active = False

    def _install(self) -> None:
        """Add the hooks to the current API proxy. Tests replace the proxy, and it keeps only one hook of each name."""
        from google.appengine.api import apiproxy_stub_map

        proxy = apiproxy_stub_map.apiproxy
        proxy.GetPreCallHooks().Append("deferred_middleware transactions", self._before_call)
        # Rollbacks are handled in the pre-call hook, because the SDK may not wait for their answer.
        proxy.GetPostCallHooks().Append("deferred_middleware transactions", self._after_call, "datastore_v3")

    def _before_call(self, service: str, call: str, request: Any, response: Any, rpc: Any) -> None:
        if service == "datastore_v3" and call == "Rollback":
            self._forget(request.handle)
        if not getattr(self._adding, "active", False):
            return
        handle = None
        if service == "taskqueue" and call == "BulkAdd":
            handle = _handle_in(request.add_request[0])
        elif service == "datastore_v3" and call == "Put":
            handle = _handle_in(request)
        if handle is None:
            return
        self._adding.active = False
        with self._lock:
            transaction = self._transactions.setdefault(handle, _Transaction())
            if transaction.tasks >= protocol.MAX_TASKS_PER_TRANSACTION:
                raise TaskLimitReachedError
            transaction.tasks += 1
            self._adding.counted_in = transaction
            if self._adding.after_commit is not None:
                transaction.after_commit.append(self._adding.after_commit)
            while len(self._transactions) > MAX_TRANSACTIONS:
                self._transactions.popitem(last=False)

    def _after_call(self, service: str, call: str, request: Any, response: Any, rpc: Any, error: Any) -> None:
        if call != "Commit":
            return
        transaction = self._forget(request.handle)
        if transaction is not None and error is None:
            for function in transaction.after_commit:
                function()

    def _forget(self, handle: int) -> _Transaction | None:
        with self._lock:
            return self._transactions.pop(handle, None)


class _Transaction:
    """The tasks and the functions of one transaction."""

    __slots__ = ("after_commit", "tasks")

    def __init__(self) -> None:
        self.tasks = 0
        self.after_commit: list[Callable[[], object]] = []


def _handle_in(request: Any) -> int | None:
    """Return the handle of the transaction that a request names."""
    for field in ("transaction", "datastore_transaction"):
        if any(descriptor.name == field for descriptor, _ in request.ListFields()):
            value = getattr(request, field)
            return hash(value) if isinstance(value, bytes) else int(value.handle)
    return None


MONITOR: Final = TransactionMonitor()
"""The process's monitor of the SDK's transactions."""


class _AfterCommit:
    """A function that google-cloud-ndb calls after the commit of a transaction in which a task was added."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function

    def __call__(self) -> None:
        self._function()


@contextlib.contextmanager
def adding(after_commit: Callable[[], object]) -> Iterator[None]:
    """Count the task that is added to the current transaction in the block; see :meth:`TransactionMonitor.adding`."""
    if not entities.in_cloud_transaction():
        with MONITOR.adding(after_commit):
            yield
        return
    context = entities.cloud_context()
    tasks = sum(isinstance(callback, _AfterCommit) for callback in context.on_commit_callbacks)
    if tasks >= protocol.MAX_TASKS_PER_TRANSACTION:
        raise TaskLimitReachedError
    yield
    context.call_on_commit(_AfterCommit(after_commit))


@contextlib.contextmanager
def explained(call: Call, queue: str) -> Iterator[None]:
    """Turn the errors of an add in a transaction into ours, which say what to do.

    Raises:
        TransactionLimitError: the transaction has the maximum number of tasks already.
        CrossGroupError: the transaction was not declared as one over several entity groups.
    """
    try:
        yield
    except TaskLimitReachedError as error:
        raise TransactionLimitError(
            call.label,
            queue,
            call.options.name,
            f"the transaction has {protocol.MAX_TASKS_PER_TRANSACTION} tasks already, and the platform allows no more. "
            "Defer one call in it that defers the others.",
        ) from error
    except datastore_errors.BadRequestError as error:
        if isinstance(error, EnqueueError) or "cross-group" not in str(error):
            raise
        raise CrossGroupError(
            call.label,
            queue,
            call.options.name,
            "the task is an entity of its own in this transaction, as is one with a large payload, or one on Cloud "
            "Tasks. Declare the transaction with xg=True.",
        ) from error
