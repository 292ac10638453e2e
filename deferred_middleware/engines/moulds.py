"""Make many of the SDK's tasks that differ in little, at a fraction of what ``taskqueue.Task()`` and an add take.

The constructor parses the URL, reads the environment and flattens the headers for each task anew, and an add puts all
that into its message anew. Where all that is the same, a task is a copy of one that the constructor made, and its part
of the message a copy of what the SDK's own add made of that one, with another name, payload, ETA and signature. Whether
copies are what the SDK would have made is tried for each mould; where they aren't, with another version of the SDK, the
SDK makes every task and every message.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

from google.appengine.api import taskqueue, urlfetch
from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as taskqueue_pb

_NAME: Final = "_Task__name"
_PAYLOAD: Final = "_Task__payload"
_ETA: Final = "_Task__eta_posix"
_HEADERS: Final = "_Task__headers"
_HEADER_LIST: Final = "_Task__headers_list"
_QUEUE_NAME: Final = "_Task__queue_name"
_ENQUEUED: Final = "_Task__enqueued"
_CHOSEN_NAME: Final = "chosen"


class _Headers(urlfetch._CaselessDict):  # type: ignore[misc] # the SDK has no types
    """A task's headers. The SDK copies them for each look at them, through Python code for each header."""

    def copy(self) -> dict[str, Any]:
        """Return a copy, the same as the SDK's."""
        return dict(self.data)


class Maker(Protocol):
    """Makes a task with the SDK's constructor."""

    def __call__(self, *, name: str | None, payload: bytes, eta_posix: float | None, value: str | None) -> Any:
        """Return the task; ``value`` is that of the header that differs, None where there is none."""


class Draft:
    """A task to add, which is made when somebody wants to see it; or one that the SDK made already."""

    # Not a dataclass: thousands are made in a second.
    __slots__ = ("_enqueued_in", "_mould", "_task", "eta_posix", "name", "payload", "size_bytes", "value")

    def __init__(
        self,
        mould: Mould | None,
        task: Any,
        size_bytes: int,
        name: str | None = None,
        payload: bytes = b"",
        eta_posix: float = 0.0,
        value: str | None = None,
    ) -> None:
        self._mould = mould
        self._task = task
        self._enqueued_in: str | None = None
        self.size_bytes = size_bytes
        """What the task takes, as the SDK counts it."""
        self.name = name
        self.payload = payload
        self.eta_posix = eta_posix
        self.value = value
        """That of the header that differs."""

    @property
    def task(self) -> taskqueue.Task:
        """The SDK's task; always the same."""
        if self._task is None:
            self._task = self._mould._task_of(self)  # type: ignore[union-attr] # without one it has its task
            if self._enqueued_in is not None:
                self.added(self._enqueued_in, None)
        return self._task

    def fill(self, message: Any) -> bool:
        """Fill in a ``TaskQueueAddRequest``, as the SDK does it for the task; return false where only the SDK can."""
        mould = self._mould
        if mould is None or mould.message is None:
            return False
        message.CopyFrom(mould.message)
        message.task_name = self.name.encode() if self.name else b""
        message.eta_usec = round(self.eta_posix * 1e6)
        if self.payload:
            message.body = self.payload
        if self.value is not None:
            message.header[mould.place].value = self.value.encode()
        return True

    def added(self, queue: str, chosen_name: str | None) -> None:
        """Take note that the task is in ``queue``, under a name that the queue chose if it had none."""
        self.name = chosen_name or self.name
        self._enqueued_in = queue
        if self._task is not None:
            vars(self._task).update({_NAME: self.name, _QUEUE_NAME: queue, _ENQUEUED: True})


class _Recorder:
    """Takes what the SDK would send, in the place of a UserRPC."""

    service = "taskqueue"
    request: Any = None
    response: Any = None
    _read: Any = None

    def make_call(self, _method: str, request: Any, response: Any, read: Any, _user_data: Any) -> None:
        """Keep the message, and what reads its answer."""
        self.request, self.response, self._read = request, response, read

    def check_success(self) -> None:
        """Tell that there was an answer."""

    def answer(self) -> None:
        """Let the SDK read that each task was added, those without a name under a chosen one."""
        for add in self.request.add_request:
            result = self.response.taskresult.add()
            result.result = taskqueue_pb.TaskQueueServiceError.OK
            if not add.task_name:
                result.chosen_task_name = _CHOSEN_NAME.encode()
        self._read(self)


class Mould:
    """Makes tasks that differ in their name, payload, ETA, and the value of ``header``, if that is not None.

    They are for ``queue``; if that is None, the SDK has to be given them to be sent.
    """

    __slots__ = ("_data", "_header", "_header_list", "_keys", "_queue", "_size_bytes", "_state", "message", "place")

    def __init__(self, make: Maker, header: str | None, queue: str | None = None) -> None:
        value = None if header is None else "a"
        task = make(name="a", payload=b"a", eta_posix=1.0, value=value)
        self._state = dict(vars(task))
        headers = self._state[_HEADERS]
        self._data: dict[str, Any] = headers.data
        self._keys: dict[str, str] = headers.caseless_keys
        self._header = header
        self._header_list: list[tuple[bytes, bytes]] = self._state[_HEADER_LIST]
        self.place = -1
        """The place of the header among the others."""
        if header is not None:
            self.place = [key for key, _ in self._header_list].index(header.encode())
        self._size_bytes: int = task.size - 1 - len(value or "")
        self._queue = queue
        self.message: Any = None
        """What the SDK sends of such a task, a ``TaskQueueAddRequest``, or None."""
        if queue is not None:
            self.message = _sent(queue, [task]).request.add_request[0]
            self.message.ClearField("body")

    def cast(self, name: str | None, payload: bytes, eta_posix: float, value: str | None) -> Draft:
        """Return a task as the constructor would make it; ``eta_posix`` is to the microsecond, as a datetime has it."""
        size_bytes = self._size_bytes + len(payload) + len(value or "")
        return Draft(self, None, size_bytes, name, payload, eta_posix, value)

    def _task_of(self, draft: Draft) -> Any:
        headers: Any = object.__new__(_Headers)
        data = self._data.copy()
        header_list = self._header_list.copy()
        if self._header is not None and draft.value is not None:
            data[self._header] = draft.value
            header_list[self.place] = (header_list[self.place][0], draft.value.encode())
        headers.__dict__ = {"data": data, "caseless_keys": self._keys.copy()}
        task = taskqueue.Task.__new__(taskqueue.Task)
        state = self._state.copy()
        state[_NAME] = draft.name
        state[_PAYLOAD] = draft.payload
        state[_ETA] = draft.eta_posix
        state[_HEADERS] = headers
        state[_HEADER_LIST] = header_list
        task.__dict__ = state
        return task

    def fits(self, make: Maker) -> bool:
        """Tell whether what it casts is what the SDK makes, sends, and has when it was added."""
        value = None if self._header is None else "another"
        for name, payload, eta_posix in (("name", b"payload", 2.25), (None, b"", 1_600_000_000.123457)):
            made = make(name=name, payload=payload, eta_posix=eta_posix, value=value)
            draft = self.cast(name, payload, eta_posix, value)
            if not _same(made, draft.task) or draft.size_bytes != made.size:
                return False
            if self._queue is not None and not self._sends(made, draft, self._queue):
                return False
        return True

    def _sends(self, made: Any, draft: Draft, queue: str) -> bool:
        """Tell whether what is sent of ``draft`` is what the SDK sends of ``made``, and the same comes of it."""
        sent = _sent(queue, [made])
        message = taskqueue_pb.TaskQueueAddRequest()
        filled = draft.fill(message)
        sent.answer()
        draft.added(queue, None if draft.name else _CHOSEN_NAME)
        return bool(filled and message == sent.request.add_request[0]) and _same(made, draft.task)


def mould_of(make: Maker, header: str | None, queue: str | None = None) -> Mould | None:
    """Return the mould of what ``make`` makes for ``queue``, or None if a copy is not the same."""
    try:
        mould = Mould(make, header, queue if _adds_itself() else None)
        return mould if mould.fits(make) else None
    except (AssertionError, AttributeError, IndexError, KeyError, TypeError, ValueError, taskqueue.Error):
        return None  # tasks are made otherwise in this version of the SDK


def _adds_itself() -> bool:
    """Tell whether the SDK's add is its own, and nobody's who wants to see each task that is added."""
    code = getattr(taskqueue.Queue.add_async, "__code__", None)
    return code is not None and code.co_filename == taskqueue.Queue.__init__.__code__.co_filename


def _sent(queue: str, tasks: list[Any]) -> _Recorder:
    """Return what the SDK would send to add ``tasks``; nothing is sent."""
    recorder = _Recorder()
    taskqueue.Queue(queue).add_async(tasks, rpc=recorder)
    return recorder


def _same(made: Any, cast: Any) -> bool:
    return _state(made) == _state(cast) and made.headers == cast.headers and type(made) is type(cast)


def _state(task: Any) -> dict[str, Any]:
    state = dict(vars(task))
    state[_HEADERS] = vars(state[_HEADERS])
    state[_ETA] = task._eta_usec
    return state
