"""A line for each attempt that ended, for the person at the terminal.

    14:03:22  default  main/send_welcome  default  #1   12 ms  ok
    14:03:22  default  main/send_invoice  default  #2  3.1 ms  OSError: no route; next try 14:03:24
    14:03:25  default  main/send_invoice  default  #3  2.9 ms  dead letter: OSError: no route; deferred-middleware …

The lines must not slow the tasks down. The thread that concludes an attempt only puts a few values into a list. A
thread of its own makes the lines and writes all that are there at once.
"""

from __future__ import annotations

import datetime
import logging
import os
import re
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from deferred_middleware.errors.text import printable
from deferred_middleware.server.admin.server_file import DEFAULT_DATA_DIR, data_dir_option
from deferred_middleware.server.admin.terminal import print_escaped
from deferred_middleware.server.admin.views import function_from_url
from deferred_middleware.server.store.records import ClaimedTask, Completion
from deferred_middleware.wire.protocol import POSTPONED

"""The data directory that the commands use by default."""

_GATHER_SECONDS = 0.05
# If the output takes no more, such as while a person selects text, this many lines wait. Further ones are left out.
_MOST_WAITING = 10_000
_STOP_SECONDS = 2.0

_GAP = "  "
_SHORTEST_FUNCTION = 12
_LONGEST_PADDING = 40
# So much of a terminal's row is kept for the outcome before the function's name is shortened, and so much more before
# the names are padded.
_OUTCOME_WIDTH = 19
_ROOM_FOR_FAILURES = 22
# If less is left in the terminal's row for the description of a failure, the line goes on in a second row.
_SHORTEST_PROBLEM = 24
_DAY_SECONDS = 24 * 3600

_DIM, _GREEN, _YELLOW, _RED, _PLAIN = "\x1b[2m", "\x1b[32m", "\x1b[33m", "\x1b[31m", "\x1b[0m"
# The end of a traceback: the line with the exception follows the indented ones.
_EXCEPTION = re.compile(r"^ .*\n(?P<type>[A-Za-z_][\w.<>]*)(?P<text>: .*)?$", re.MULTILINE)

logger: Final = logging.getLogger(__name__)


class AttemptReports(Protocol):
    """Who is told that an attempt has ended. Any thread may call it."""

    def attempt_ended(self, task: ClaimedTask, completion: Completion, outcome: str | None) -> None:
        """Take note of the end of an attempt; ``outcome`` is the response's ``X-Deferred-Outcome``."""


class DeadLetterLog:
    """Logs each dead letter, with the command that retries it. ``data_dir`` is the server's."""

    def __init__(self, data_dir: Path = DEFAULT_DATA_DIR) -> None:
        self._data_dir = data_dir

    def attempt_ended(self, task: ClaimedTask, completion: Completion, outcome: str | None) -> None:
        """Log the task if it has become a dead letter."""
        if completion.state == "failed":
            logger.error(
                "Task %d, %s of queue %s (%s), is a dead letter. It failed %s: %s. To retry it: %s",
                task.id,
                task.name,
                task.queue,
                task.url,
                "once" if completion.retry_count == 1 else f"{completion.retry_count} times",
                printable(completion.attempt.reason or "permanent failure").removesuffix("."),
                retry_command(task.id, self._data_dir),
            )


def retry_command(task_id: int, data_dir: Path) -> str:
    """Return the command that retries a dead letter of the server with this data directory."""
    return f"deferred-middleware retry {task_id}{data_dir_option(data_dir)}"


class EndedAttempt(NamedTuple):
    """What a line says. A task's body is not kept, because many lines may wait."""

    task_id: int
    queue: str
    url: str
    service: str
    number: int
    ended: float
    duration_usec: int
    state: str
    outcome: str | None
    reason: str | None
    response: bytes
    next_try: float


class TaskLines:
    """Writes a line for each attempt to standard output. ``services`` and ``queues`` are the names to make room for.

    Colours are used on a terminal, unless the environment has ``NO_COLOR``.
    """

    def __init__(self, *, services: Iterable[str], queues: Iterable[str], data_dir: Path) -> None:
        self._lines = LineFormat(
            services=services, queues=queues, data_dir=data_dir, colours=_shows_colours(os.environ)
        )
        self._thread = threading.Thread(target=self._run, name="task-lines", daemon=True)
        # Any thread appends, and sets the event afterwards; the thread clears the event before it takes what is there.
        self._waiting: deque[EndedAttempt] = deque()
        self._some_wait = threading.Event()
        self._stopping = threading.Event()
        # Any thread adds to it. Threads that do so at the same time may count one line too few.
        self._left_out = 0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Write the lines that wait, and end the thread, unless the output takes nothing."""
        self._stopping.set()
        self._some_wait.set()
        if self._thread.ident is not None:
            self._thread.join(_STOP_SECONDS)

    def attempt_ended(self, task: ClaimedTask, completion: Completion, outcome: str | None) -> None:
        """Have a line written."""
        if len(self._waiting) >= _MOST_WAITING:
            self._left_out += 1
            return
        attempt = completion.attempt
        self._waiting.append(
            EndedAttempt(
                task.id,
                task.queue,
                task.url,
                attempt.service,
                attempt.number,
                time.time(),
                attempt.duration_usec,
                completion.state,
                outcome,
                attempt.reason,
                b"" if completion.state == "succeeded" else attempt.excerpt,
                completion.eta_usec / 1e6,
            )
        )
        if not self._some_wait.is_set():
            self._some_wait.set()

    def _run(self) -> None:
        while self._some_wait.wait():
            # Further attempts that end now share the write.
            stopping = self._stopping.wait(_GATHER_SECONDS)
            self._some_wait.clear()
            try:
                self._write([self._waiting.popleft() for _ in range(len(self._waiting))])
            except Exception:  # the thread has to survive for the other lines
                logger.exception("The lines of some tasks could not be written.")
            if stopping:
                return

    def _write(self, ended: list[EndedAttempt]) -> None:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        lines = [self._lines.format(one, width) for one in ended]
        left_out, self._left_out = self._left_out, 0
        if left_out:
            lines.append(f"The output was too slow for the lines of {left_out:,} more attempts.")
        if lines:
            print_escaped("\n".join(lines))


class LineFormat:
    """Formats lines in columns, which grow with what they hold."""

    def __init__(self, *, services: Iterable[str], queues: Iterable[str], data_dir: Path, colours: bool) -> None:
        self._data_dir = data_dir
        self._colours = colours
        self._service_width = max(map(len, services), default=0)
        self._queue_width = max(map(len, queues), default=0)
        self._function_width = _SHORTEST_FUNCTION
        # The last second, and its text.
        self._second = (0, "")
        # By URL. Tasks have few different URLs, if the app has no numbers in them.
        self._functions: dict[str, str] = {}

    def format(self, ended: EndedAttempt, width: int | None) -> str:
        """Return the line of an attempt for a terminal with ``width`` columns; None means a file or a pipe."""
        self._queue_width = max(self._queue_width, len(ended.queue))
        duration = ended.duration_usec / 1000
        milliseconds = f"{duration:.1f} ms" if duration < 9.95 else f"{duration:,.0f} ms"
        service = f"{printable(ended.service):<{self._service_width}}"
        rest = f"{ended.queue:<{self._queue_width}}{_GAP}{f'#{ended.number}':<2}{_GAP}{milliseconds:>7}{_GAP}"
        # The time has 8 characters.
        used = 8 + len(_GAP) + len(service) + len(_GAP) + len(_GAP) + len(rest)
        function = self._function(ended.url, None if width is None else width - used - _OUTCOME_WIDTH)
        colour, outcome = self._outcome(ended, width, used + len(function))
        when = self._clock_time(ended.ended)
        if self._colours:
            when, outcome = f"{_DIM}{when}{_PLAIN}", f"{colour}{outcome}{_PLAIN}"
        return f"{when}{_GAP}{service}{_GAP}{function}{_GAP}{rest}{outcome}"

    def _function(self, url: str, limit: int | None) -> str:
        """Return the function's name, padded. A name beyond the limit loses its beginning."""
        name = self._functions.get(url)
        if name is None:
            if len(self._functions) >= 1000:
                self._functions.clear()
            name = self._functions[url] = printable(function_from_url(url) or url)
        longest = _LONGEST_PADDING
        if limit is not None:
            longest = max(_SHORTEST_FUNCTION, min(longest, limit - _ROOM_FOR_FAILURES))
            if len(name) > (limit := max(_SHORTEST_FUNCTION, limit)):
                name = "…" + name[len(name) - limit + 1 :]
        self._function_width = min(longest, max(self._function_width, len(name)))
        return f"{name:<{self._function_width}}"

    def _outcome(self, ended: EndedAttempt, terminal_width: int | None, used: int) -> tuple[str, str]:
        """Return the colour and the text of how an attempt ended, after ``used`` characters of the line."""
        if ended.state == "succeeded":
            return (_YELLOW, "postponed: enqueued again") if ended.outcome == POSTPONED else (_GREEN, "ok")
        if ended.state == "ready":
            colour, before, after = _YELLOW, "", f"; next try {self._next_try(ended)}"
        else:
            colour, before, after = _RED, "dead letter: ", f"; {retry_command(ended.task_id, self._data_dir)}"
        problem = _problem(ended)
        if terminal_width is not None:
            longest = terminal_width - used - len(before) - len(after)
            if longest < min(_SHORTEST_PROBLEM, len(problem)):
                longest = max(_SHORTEST_PROBLEM, longest + terminal_width)
            problem = problem if len(problem) <= longest else problem[: longest - 1] + "…"
        return colour, f"{before}{problem}{after}"

    def _next_try(self, ended: EndedAttempt) -> str:
        if ended.next_try - ended.ended < _DAY_SECONDS:
            return self._clock_time(ended.next_try)
        try:
            return f"{datetime.datetime.fromtimestamp(ended.next_try):%Y-%m-%d %H:%M}"
        except (OverflowError, ValueError, OSError):
            return "in many years"

    def _clock_time(self, seconds: float) -> str:
        second = int(seconds)
        if second != self._second[0]:
            self._second = (second, time.strftime("%H:%M:%S", time.localtime(second)))
        return self._second[1]


def _problem(ended: EndedAttempt) -> str:
    """Return why an attempt failed: the exception, if the response has its traceback."""
    text = ended.response.decode("utf-8", "replace")
    if "Traceback (most recent call last)" in text and (found := [*_EXCEPTION.finditer(text)]):
        name = found[-1]["type"].rpartition(".")[2]
        return printable(f"{name}{found[-1]['text'] or ''}")
    return printable(ended.reason or "permanent failure")


def _shows_colours(environ: Mapping[str, str]) -> bool:
    """Tell whether standard output shows colours (https://no-color.org)."""
    return sys.stdout.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"
