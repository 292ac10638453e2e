"""Reads SQLite's write-ahead log, behind the frame where SQLite stops reading it.

A log is a header and frames, each the new content of one page. The checksum of a frame continues that of the frame
before. SQLite ends the log in silence at the first frame that doesn't fit, even if whole transactions follow. Their
pages still show which tasks they stored.

Source: https://www.sqlite.org/fileformat2.html, "The Write-Ahead Log" and "B-tree Pages".
"""

from __future__ import annotations

import array
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
_MAGIC = 0x377F0682
_MASK = 0xFFFFFFFF
_LEAF_OF_A_TABLE = 0x0D
_FIRST_PAGE_HEADER_BYTES = 100
# Later versions of the schema add columns at the end.
_FEWEST_TASK_COLUMNS = 23
_STATES = ("held", "ready", "running", "succeeded", "failed")
# Sizes of the values of a record, by their serial types.
_SIZES = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)


@dataclass(frozen=True, kw_only=True)
class TaskRow:
    """What a page says of a task."""

    queue: str
    name: str
    state: str


@dataclass(kw_only=True)
class Log:
    """What is in a log.

    ``whole_frames`` is the number of frames up to the last commit that SQLite reads. ``later_commits`` is the number of
    commits of the same log that follow behind a frame that doesn't fit. ``later_pages`` are their pages.
    """

    whole_frames: int = 0
    later_commits: int = 0
    later_pages: dict[int, bytes] = field(default_factory=dict)

    def later_tasks(self) -> dict[int, TaskRow]:
        """Return the tasks in the later pages, by their IDs."""
        tasks: dict[int, TaskRow] = {}
        for number, page in self.later_pages.items():
            tasks.update(_task_rows(page, _FIRST_PAGE_HEADER_BYTES if number == 1 else 0))
        return tasks


def read_log(path: Path) -> Log:
    """Read the log in the file ``path``, which may be missing, empty or damaged."""
    log = Log()
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        return log
    with stream:
        header = stream.read(_HEADER.size)
        if len(header) < _HEADER.size:
            return log
        magic, _version, page_size, _sequence, *salts, sum_1, sum_2 = _HEADER.unpack(header)
        big_endian = bool(magic & 1)
        fits = magic & ~1 == _MAGIC and _checksum(header[:24], (0, 0), big_endian) == (sum_1, sum_2)
        if not 512 <= page_size <= 65536 or page_size & (page_size - 1):
            return log
        # As SQLite computes it, and as the frame before says.
        before = (sum_1, sum_2)
        number = 0
        pages: dict[int, bytes] = {}
        while len(head := stream.read(_FRAME.size)) == _FRAME.size:
            page = stream.read(page_size)
            number += 1
            page_number, committed_pages, *frame_salts, sum_1, sum_2 = _FRAME.unpack(head)
            expected = before
            before = (sum_1, sum_2)
            if (
                frame_salts != salts
                or len(page) != page_size
                or _checksum(page, _checksum(head[:8], expected, big_endian), big_endian) != before
            ):
                fits = False
                continue
            if fits:
                log.whole_frames = number if committed_pages else log.whole_frames
            else:
                pages[page_number] = page
                if committed_pages:
                    log.later_commits += 1
                    log.later_pages.update(pages)
                    pages.clear()
    return log


def _checksum(data: bytes, start: tuple[int, int], big_endian: bool) -> tuple[int, int]:
    words = array.array("I", data)
    if big_endian != (sys.byteorder == "big"):
        words.byteswap()
    first, second = start
    pairs = iter(words)
    for one, two in zip(pairs, pairs, strict=True):
        first = (first + one + second) & _MASK
        second = (second + two + first) & _MASK
    return first, second


def _task_rows(page: bytes, start: int) -> Iterator[tuple[int, TaskRow]]:
    """Yield the IDs and rows of the tasks in a page, nothing if it is a page of something else."""
    if page[start] != _LEAF_OF_A_TABLE:
        return
    (cells,) = struct.unpack_from(">H", page, start + 3)
    for index in range(cells):
        try:
            (at,) = struct.unpack_from(">H", page, start + 8 + 2 * index)
            _size, at = _varint(page, at)
            task_id, at = _varint(page, at)
            values = _first_values(page, at)
        except (IndexError, struct.error, ValueError):
            continue
        if values is not None and values.state in _STATES and values.queue:
            yield task_id, values


def _first_values(page: bytes, start: int) -> TaskRow | None:
    header_size, at = _varint(page, start)
    end = start + header_size
    types = []
    while at < end:
        serial_type, at = _varint(page, at)
        types.append(serial_type)
    # A task's ID is the row's ID, and NULL in the record.
    if len(types) < _FEWEST_TASK_COLUMNS or types[0] != 0:
        return None
    at = end
    values = []
    for serial_type in types[:5]:
        size = _SIZES[serial_type] if serial_type < len(_SIZES) else (serial_type - 12) // 2
        values.append(page[at : at + size])
        at += size
    return TaskRow(queue=values[1].decode(), name=values[2].decode(), state=values[4].decode())


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for _ in range(8):
        byte = data[at]
        at += 1
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at
    return value << 8 | data[at], at + 1
