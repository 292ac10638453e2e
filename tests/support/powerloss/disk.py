"""What a disk may contain after a power cut, computed from a log of writes and syncs.

The model is the strictest that POSIX allows. A file's bytes are certain once its ``fsync`` has returned; a file's name
is certain once its directory's ``fsync`` has returned. Each later write may or may not have reached the disk, in any
order and in parts of 512 bytes.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

SECTOR_BYTES = 512

T = TypeVar("T")

_HEAD = struct.Struct("=cHIQ")

Survival = Literal["nothing", "everything", "a prefix", "some writes", "some sectors"]
"""Which of the writes that no sync covers reach the disk."""

SURVIVALS: tuple[Survival, ...] = ("nothing", "everything", "a prefix", "some writes", "some sectors")


@dataclass(frozen=True, kw_only=True)
class Event:
    """One record of the log; ``shim.c`` describes the kinds."""

    kind: str
    name: str
    offset: int
    data: bytes


def read_log(path: Path) -> Iterator[Event]:
    """Yield the log's events."""
    log = path.read_bytes()
    at = 0
    while at < len(log):
        kind, name_length, length, offset = _HEAD.unpack_from(log, at)
        at += _HEAD.size
        name = log[at : at + name_length].decode()
        at += name_length
        yield Event(kind=kind.decode(), name=name, offset=offset, data=log[at : at + length])
        at += length


@dataclass
class _File:
    certain: bytearray = field(default_factory=bytearray)
    later: list[Event] = field(default_factory=list)


class Disk:
    """One directory of a disk, after the events that were applied."""

    def __init__(self) -> None:
        self._names: dict[str, _File] = {}
        self._certain_names: dict[str, _File] = {}
        self._later_names: list[tuple[Event, _File | None]] = []

    def apply(self, event: Event) -> None:
        """Apply one operation of the recorded process."""
        if event.kind == "c":
            self._names[event.name] = _File()
            self._later_names.append((event, self._names[event.name]))
        elif event.kind == "u":
            del self._names[event.name]
            self._later_names.append((event, None))
        elif event.kind == "r":
            self._names[event.data.decode()] = self._names.pop(event.name)
            self._later_names.append((event, None))
        elif event.kind == "s" and event.name == "":
            self._certain_names = dict(self._names)
            self._later_names = []
        elif event.kind == "s":
            file = self._file(event.name)
            for change in file.later:
                _change(file.certain, change)
            file.later = []
        else:
            self._file(event.name).later.append(event)

    def after_power_cut(self, survival: Survival, chance: random.Random) -> dict[str, bytes]:
        """Return the names and bytes of the files that exist after a power cut."""
        names = dict(self._certain_names)
        for event, file in _surviving(self._later_names, survival, chance):
            if event.kind == "c" and file is not None:
                names[event.name] = file
            elif event.kind == "u":
                names.pop(event.name, None)
            elif event.name in names:
                names[event.data.decode()] = names.pop(event.name)
        files = {}
        for name, file in names.items():
            content = bytearray(file.certain)
            for change in _surviving(file.later, survival, chance):
                torn = survival == "some sectors" and change.kind == "w"
                for part in _sectors(change, chance) if torn else [change]:
                    _change(content, part)
            files[name] = bytes(content)
        return files

    def _file(self, name: str) -> _File:
        # The file may have existed before the recording began.
        if name not in self._names:
            self._names[name] = self._certain_names[name] = _File()
        return self._names[name]


def _surviving(changes: list[T], survival: Survival, chance: random.Random) -> list[T]:
    if survival == "nothing":
        return []
    if survival == "everything":
        return changes
    if survival == "a prefix":
        return changes[: chance.randint(0, len(changes))]
    return [change for change in changes if chance.random() < 0.5]


def _sectors(write: Event, chance: random.Random) -> Iterator[Event]:
    for at in range(0, len(write.data), SECTOR_BYTES):
        if chance.random() < 0.5:
            part = write.data[at : at + SECTOR_BYTES]
            yield Event(kind="w", name=write.name, offset=write.offset + at, data=part)


def _change(content: bytearray, event: Event) -> None:
    if event.kind == "t":
        del content[event.offset :]
    if len(content) < event.offset:
        content.extend(bytes(event.offset - len(content)))
    if event.kind == "w":
        content[event.offset : event.offset + len(event.data)] = event.data
