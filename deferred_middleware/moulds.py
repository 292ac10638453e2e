"""Make many of the SDK's tasks that differ in little, at a fraction of what ``taskqueue.Task()`` takes.

The constructor parses the URL, reads the environment and flattens the headers for each task anew. Where all that is the
same, a task is a copy of one that the constructor made, with another name, payload, ETA and signature. Whether a copy
is what the constructor would have made is tried for each mould; where it isn't, with another version of the SDK, the
constructor makes every task.
"""

from __future__ import annotations

import time
from typing import Any, Final, Protocol

from google.appengine.api import taskqueue, urlfetch

_NAME: Final = "_Task__name"
_PAYLOAD: Final = "_Task__payload"
_ETA: Final = "_Task__eta_posix"
_HEADERS: Final = "_Task__headers"
_HEADER_LIST: Final = "_Task__headers_list"


class _Headers(urlfetch._CaselessDict):  # type: ignore[misc] # the SDK has no types
    """A task's headers. The SDK copies them for each look at them, through Python code for each header."""

    def copy(self) -> dict[str, Any]:
        """Return a copy, the same as the SDK's."""
        return dict(self.data)


class Maker(Protocol):
    """Makes a task with the SDK's constructor."""

    def __call__(self, *, name: str | None, payload: bytes, eta_posix: float | None, value: str | None) -> Any:
        """Return the task; ``value`` is that of the header that differs, None where there is none."""


class Mould:
    """Makes tasks that differ in their name, payload, ETA, and the value of ``header``, if that is not None."""

    __slots__ = ("_data", "_header", "_header_list", "_keys", "_place", "_size_bytes", "_state")

    def __init__(self, make: Maker, header: str | None) -> None:
        value = None if header is None else "a"
        task = make(name="a", payload=b"a", eta_posix=1.0, value=value)
        self._state = dict(vars(task))
        headers = self._state[_HEADERS]
        self._data: dict[str, Any] = headers.data
        self._keys: dict[str, str] = headers.caseless_keys
        self._header = header
        self._header_list: list[tuple[bytes, bytes]] = self._state[_HEADER_LIST]
        self._place = -1
        if header is not None:
            self._place = [key for key, _ in self._header_list].index(header.encode())
        self._size_bytes: int = task.size - 1 - len(value or "")

    def cast(self, *, name: str | None, payload: bytes, eta_posix: float | None, value: str | None) -> Any:
        """Return a task as the constructor would make it."""
        headers: Any = object.__new__(_Headers)
        data = self._data.copy()
        header_list = self._header_list.copy()
        if self._header is not None and value is not None:
            data[self._header] = value
            header_list[self._place] = (header_list[self._place][0], value.encode())
        headers.__dict__ = {"data": data, "caseless_keys": self._keys.copy()}
        task = taskqueue.Task.__new__(taskqueue.Task)
        state = self._state.copy()
        state[_NAME] = name
        state[_PAYLOAD] = payload
        # To the microsecond, as a datetime has it.
        state[_ETA] = time.time() if eta_posix is None else round(eta_posix, 6)
        state[_HEADERS] = headers
        state[_HEADER_LIST] = header_list
        task.__dict__ = state
        return task

    def size_of(self, payload: bytes, value: str | None) -> int:
        """Return the size of the task that has this payload and this header, as the SDK counts it."""
        return self._size_bytes + len(payload) + len(value or "")

    def fits(self, make: Maker) -> bool:
        """Tell whether what it casts is what the constructor makes."""
        value = None if self._header is None else "another"
        for eta_posix in (2.25, 1_600_000_000.123457):
            made = make(name="name", payload=b"payload", eta_posix=eta_posix, value=value)
            cast = self.cast(name="name", payload=b"payload", eta_posix=eta_posix, value=value)
            same = _state(made) == _state(cast) and made.headers == cast.headers and type(made) is type(cast)
            if not same or self.size_of(b"payload", value) != made.size:
                return False
        return True


def mould_of(make: Maker, header: str | None) -> Mould | None:
    """Return the mould of what ``make`` makes, or None if a copy is not the same."""
    try:
        mould = Mould(make, header)
        return mould if mould.fits(make) else None
    except (AttributeError, KeyError, TypeError, ValueError, taskqueue.Error):
        return None  # tasks are made otherwise in this version of the SDK


def _state(task: Any) -> dict[str, Any]:
    state = dict(vars(task))
    state[_HEADERS] = vars(state[_HEADERS])
    state[_ETA] = task._eta_usec
    return state
