"""The queue process's end of the channel to one app process: its socket, and the memory that they share.

The owner polls the socket, and calls :meth:`ChannelSocket.proceed`, which never blocks. What the messages mean is
decided by :class:`~deferred_middleware.server.delivery.channel.Channel`.
"""

from __future__ import annotations

import logging
import os
import select
import socket
from collections.abc import Sequence
from typing import Final, NamedTuple, cast

from deferred_middleware.server.delivery.attempt_result import AttemptEvent
from deferred_middleware.server.delivery.begun import Begun, open_memory
from deferred_middleware.server.delivery.channel import (
    MOST_AHEAD,
    AheadBudget,
    Channel,
    ChannelError,
    SharedNumbers,
    ToDeliver,
)
from deferred_middleware.server.delivery.frames import SLOT_MASK, BadFrameError, FrameReader

logger: Final = logging.getLogger(__name__)

_READ_BYTES = 256 << 10
# So much is read or sent before other work of the thread has its turn.
_TURN_BYTES = 4 << 20
_JOINED_BYTES = 64 << 10


class ChildEnds(NamedTuple):
    """What the app process inherits: its end of the socket pair, and the descriptor of the shared memory."""

    connection: socket.socket
    memory: int

    def close(self) -> None:
        """Close this process's copies."""
        self.connection.close()
        os.close(self.memory)


class ChannelSocket:
    """A channel to a process that may run ``concurrency`` tasks at a time; ``ends`` are for that process."""

    def __init__(self, concurrency: int) -> None:
        slots = concurrency + MOST_AHEAD
        if slots > SLOT_MASK:
            raise ValueError(f"{concurrency} tasks at a time are too many")
        self._socket, theirs = socket.socketpair()
        try:
            self._socket.setblocking(False)
            memory = open_memory(slots)
            self._begun = Begun(os.dup(memory))
        except BaseException:
            self._socket.close()
            theirs.close()
            raise
        self.ends: ChildEnds = ChildEnds(theirs, memory)
        self.channel: Channel = Channel(cast(SharedNumbers, self._begun.slots))
        self._reader = FrameReader()
        # The rest of the frames that the socket has not taken yet.
        self._unsent: list[bytes | memoryview] = []
        self.is_open: bool = True
        """Whether the process may still send something that is read."""

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        return self._socket.fileno()

    @property
    def next_check(self) -> float:
        """When to call :meth:`proceed` in any case, by the monotonic clock."""
        return self.channel.next_check

    def ahead_budget(self) -> AheadBudget | None:
        """Return what may be delivered before there is a place for it to run."""
        return self.channel.ahead_budget()

    def deliver(self, tasks: Sequence[tuple[ToDeliver, dict[str, str]]], *, limit: int, now: float) -> None:
        """Deliver tasks, with their environments. The process may run ``limit`` tasks at a time."""
        self.channel.deliver(tasks, limit=limit, now=now)
        self._flush()

    def not_begun(self) -> list[int]:
        """Return the IDs of the delivered tasks that have not begun. Any thread may call it."""
        try:
            return self.channel.not_begun()
        except ValueError:
            return []  # the memory was released meanwhile, because the process has ended

    def withdraw(self, now: float) -> None:
        """Have the process hand back what has not begun."""
        self.channel.withdraw(now)
        self._flush()

    def proceed(self, events: list[AttemptEvent], now: float) -> None:
        """Send and receive what is possible without waiting, and append what has happened to ``events``.

        Raises :class:`ChannelError`; the events before it are in the list.
        """
        self._receive(events, now)
        if now >= self.channel.next_check and self.is_open:
            events += self.channel.check(now)
        self._flush()

    def ended(self, events: list[AttemptEvent], now: float) -> None:
        """Append what the end of the process means for its deliveries to ``events``, and close the channel.

        Raises :class:`ChannelError` as :meth:`proceed` does.
        """
        try:
            self._receive(events, now)
        finally:
            events += self.channel.ended(now)
            self.close()

    @property
    def awaited(self) -> int:
        """The events that the socket waits for, as :mod:`select` defines them."""
        return select.POLLIN | (select.POLLOUT if self._unsent else 0)

    def _flush(self) -> None:
        """Send as much as the socket takes."""
        budget = _TURN_BYTES
        try:
            while budget > 0 and (self._unsent or self._fill()):
                sent = self._socket.sendmsg(self._unsent[:2])
                budget -= sent
                self._drop(sent)
        except BlockingIOError:
            return
        except OSError as error:
            # The end of the process says what becomes of the deliveries.
            logger.debug("A channel broke: %s", error)
            self._unsent.clear()

    def _receive(self, events: list[AttemptEvent], now: float) -> None:
        try:
            self._receive_some(events, now)
        except ChannelError:
            # Nothing that follows can be believed.
            self.is_open = False
            raise

    def _receive_some(self, events: list[AttemptEvent], now: float) -> None:
        budget = _TURN_BYTES
        while self.is_open and budget > 0:
            try:
                data = self._socket.recv(_READ_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                logger.debug("A channel broke: %s", error)
                data = b""
            if not data:
                self.is_open = False
                if self._reader.has_part:
                    raise ChannelError("its last message is cut off")
                return
            budget -= len(data)
            try:
                found = self._reader.feed(data)
            except BadFrameError as error:
                raise ChannelError(str(error)) from error
            for kind, content in found:
                events += self.channel.received(kind, content, now)
            if len(data) < _READ_BYTES:
                return

    def close(self) -> None:
        """Close the socket and the memory."""
        self.is_open = False
        self._socket.close()
        self._begun.close()

    def _fill(self) -> bool:
        """Take the next frames to send; return whether there are any."""
        size = 0
        while size < _JOINED_BYTES and (found := self.channel.next_frame()) is not None:
            head, part = found
            self._unsent.append(head)
            size += len(head)
            if part is not None:
                self._unsent.append(part)
                break
        return bool(self._unsent)

    def _drop(self, sent: int) -> None:
        """Forget the first ``sent`` bytes of what is unsent."""
        while sent:
            first = self._unsent[0]
            if len(first) > sent:
                self._unsent[0] = memoryview(first)[sent:]
                return
            sent -= len(first)
            del self._unsent[0]
