"""Put prepared calls together that can be added in one RPC: the same queue, not too many, and not too large."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from deferred_middleware.wire import protocol

if TYPE_CHECKING:
    from deferred_middleware.enqueue.prepare import Prepared

T = TypeVar("T")

_MAX_WAITING: Final = 1000
"""How many calls may wait for others of their queue."""
_MAX_WAITING_BYTES: Final = 4 * protocol.MAX_ADD_BYTES


@dataclasses.dataclass(slots=True)
class Group(Generic[T]):
    """Calls of one queue for one RPC; ``tags`` tell the caller which they are."""

    prepared: list[Prepared] = dataclasses.field(default_factory=list)
    tags: list[T] = dataclasses.field(default_factory=list)
    names: set[str] = dataclasses.field(default_factory=set)
    size_bytes: int = 0


class Groups(Generic[T]):
    """Groups that are being filled, one for each queue."""

    def __init__(self) -> None:
        self._groups: dict[str, Group[T]] = {}
        self._waiting = 0
        self._waiting_bytes = 0

    def add(self, prepared: Prepared, tag: T) -> Sequence[Group[T]]:
        """Add a call, and return the groups that are to be sent because of it."""
        queue, name, size_bytes = prepared.queue, prepared.call.options.name, prepared.size_bytes
        group = self._groups.get(queue)
        full: Sequence[Group[T]] = ()
        # A name must not be in an add twice. A group that has as many calls as may be has left already.
        if group is not None and (group.size_bytes + size_bytes > protocol.MAX_ADD_BYTES or name in group.names):
            full = [self._take(queue)]
            group = None
        if group is None:
            group = self._groups[queue] = Group()
        group.prepared.append(prepared)
        group.tags.append(tag)
        group.size_bytes += size_bytes
        if name is not None:
            group.names.add(name)
        self._waiting += 1
        self._waiting_bytes += size_bytes
        if len(group.prepared) == protocol.MAX_TASKS_PER_ADD:
            return [*full, self._take(queue)]
        if self._waiting > _MAX_WAITING or self._waiting_bytes > _MAX_WAITING_BYTES:
            return [*full, self._take(max(self._groups, key=lambda name: self._groups[name].size_bytes))]
        return full

    def rest(self) -> Iterator[Group[T]]:
        """Give what is left."""
        while self._groups:
            yield self._take(next(iter(self._groups)))

    def _take(self, queue: str) -> Group[T]:
        group = self._groups.pop(queue)
        self._waiting -= len(group.prepared)
        self._waiting_bytes -= group.size_bytes
        return group
