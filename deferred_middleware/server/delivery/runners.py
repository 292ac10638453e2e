"""Run the tasks that arrive over the channel: the app process's end.

One thread *leads*: it reads the channel, and runs the tasks itself as long as they are short. So a task takes no
hand-over between threads, and one message carries the results of many. Two observations bring in more threads, up to
the limit that the queue process gives:

* If the leader's task lasts longer than :data:`TICK_SECONDS`, another thread takes the lead. A watching thread notices
  that; it sleeps while nothing runs.
* If tasks spend more than :data:`WAITING_SECONDS` waiting, for a network or a disk, while others could run, further
  threads help with the tasks that have arrived.

Results are gathered while more tasks are there to run, up to :data:`GATHERED` and for no longer than
:data:`GATHER_SECONDS`.
"""

from __future__ import annotations

import io
import os
import queue
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final
from wsgiref.util import FileWrapper

from deferred_middleware.errors.loggers import get_logger
from deferred_middleware.server.delivery import frames
from deferred_middleware.server.delivery.begun import ENDED, SUCCEEDED, Begun
from deferred_middleware.server.delivery.frames import SLOT_MASK, DeliveryResult
from deferred_middleware.server.delivery.task_request import SAME_FOR_ALL
from deferred_middleware.server.delivery.wsgi_call import answer

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

logger: Final = get_logger(__name__)

TICK_SECONDS: Final = 0.003
WAITING_SECONDS: Final = 0.0002
GATHERED: Final = 32
GATHER_SECONDS: Final = 0.002

_READ_BYTES: Final = 256 << 10
# Whether tasks wait is measured while one of them runs alone. So once in a while a few do.
_SAMPLES: Final = 4
_MEASURE_EVERY_SECONDS: Final = 0.25


class Permits:
    """Limits how many requests run at the same time, those of waitress and the tasks together."""

    def __init__(self, number: int) -> None:
        # threading.Semaphore is several times slower.
        self._free: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(number):
            self._free.put(None)

    def __enter__(self) -> None:
        self._free.get()

    def __exit__(self, *_exc_info: object) -> None:
        self._free.put(None)


class _Job:
    """A delivered task. The parts of a long body are added to it."""

    __slots__ = ("environ", "is_first", "missing", "number", "parts")

    def __init__(self, delivered: frames.Delivered) -> None:
        self.number = delivered.number
        self.is_first = delivered.is_first
        self.environ = delivered.environ
        self.parts: list[bytes] = [] if delivered.body is None else [delivered.body]
        self.missing = delivered.length if delivered.body is None else 0


class TaskRunners:
    """Runs the tasks that arrive on ``connection`` with ``app``, and sends their results.

    ``begun`` is the memory that the queue process shares. At most as many requests run at a time as ``permits`` allows.
    Each delivery's environment begins with ``environ``. When the channel fails, ``on_failure`` is called, because
    nothing can be delivered any more.
    """

    def __init__(
        self,
        app: WSGIApplication,
        connection: socket.socket,
        begun: Begun,
        *,
        permits: Permits,
        environ: dict[str, Any],
        on_failure: Callable[[], object],
    ) -> None:
        self._app = app
        self._connection = connection
        self._begun = begun.slots
        self._permits = permits
        self._on_failure = on_failure
        self._environ = {
            **SAME_FOR_ALL,
            **environ,
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "wsgi.file_wrapper": FileWrapper,
            "wsgi.input_terminated": True,
        }
        self._pid = os.getpid()
        # Only the leader uses it.
        self._reader = frames.FrameReader()
        # One thread at a time sends; whoever needs both locks takes this one first.
        self._sending = threading.Lock()
        # Guards everything below.
        self._lock = threading.Lock()
        self._first: deque[_Job] = deque()
        self._ahead: deque[_Job] = deque()
        self._incomplete: dict[int, _Job] = {}
        self._limit = 0
        self._running = 0
        self._results: list[DeliveryResult] = []
        self._oldest_result = 0.0
        self._stopping = False
        # The threads that wait for a call, each by a queue of its own. A call is the number of the lead, or 0 to help.
        self._spare: list[queue.SimpleQueue[int]] = []
        self._called_to_help = 0
        # Which lead is the current one, whether its thread runs a task, and how many tasks have begun.
        self._lead = 0
        self._leader_runs = False
        self._begun_count = 0
        # The watching thread sleeps until this lock is released.
        self._alarm = threading.Lock()
        self._alarm.acquire()
        self._watching = False
        # How long the tasks that ran alone have waited, and what that means.
        self._samples = 0
        self._waited_seconds = 0.0
        self._tasks_wait = False
        self._measure_at = 0.0

    def start(self) -> None:
        """Begin to read. Call this only after the app was imported: ``wrap_wsgi_app`` patches how threads start."""
        threading.Thread(target=self._watch, name="delivery-watch", daemon=True).start()
        with self._lock:
            self._pass_lead()

    @property
    def is_busy(self) -> bool:
        """Whether tasks run, or results are not sent yet."""
        with self._lock:
            return bool(self._running or self._results)

    def request_stop(self) -> None:
        """Hand back what has not begun, now and from now on."""
        with self._lock:
            self._stopping = True
            numbers = self._take_back()
        self._send([frames.handed_back_frame(numbers)])

    def _pass_lead(self) -> None:
        """Have another thread lead. Called under the lock."""
        self._lead += 1
        self._leader_runs = False
        self._call(self._lead)

    def _call(self, what: int) -> None:
        """Have a spare thread, or a new one, lead or help. Called under the lock."""
        if self._spare:
            self._spare.pop().put(what)
            return
        calls: queue.SimpleQueue[int] = queue.SimpleQueue()
        try:
            threading.Thread(target=self._work, args=(calls,), name="delivery", daemon=True).start()
        except RuntimeError as error:
            logger.error("A thread for tasks can't be started: %s", error)
            if what:
                # The thread that led goes on leading.
                self._lead -= 1
                self._leader_runs = True
            else:
                self._called_to_help -= 1
            return
        calls.put(what)

    def _work(self, calls: queue.SimpleQueue[int]) -> None:
        while True:
            lead = calls.get()
            if lead and not self._run_as_leader(lead):
                return
            if not lead:
                with self._lock:
                    self._called_to_help -= 1
            while (job := self._take(0)) is not None:
                self._run(job, 0)
            self._flush()
            with self._lock:
                self._spare.append(calls)

    def _run_as_leader(self, lead: int) -> bool:
        """Read and run as long as this thread leads; return false at the end of the channel."""
        while self._lead == lead:
            job = self._take(lead)
            if job is not None:
                self._run(job, lead)
                continue
            self._flush()
            try:
                if not self._read():
                    return False
            except frames.BadFrameError as error:
                logger.error("The queue process has sent what can't be read: %s. Start the server again.", error)
                self._on_failure()
                return False
        return True

    def _take(self, lead: int) -> _Job | None:
        """Return a task to run, if there is one that may begin."""
        with self._lock:
            backlog = self._first or self._ahead
            if not backlog or self._running >= self._limit or (not lead and self._is_measuring()):
                return None
            job = backlog.popleft()
            self._running += 1
            self._begun_count += 1
            if lead:
                self._leader_runs = True
            if not self._watching:
                self._watching = True
                self._alarm.release()
            if (
                self._tasks_wait
                and (self._first or self._ahead)
                and self._running + self._called_to_help < self._limit
                and not self._is_measuring()
            ):
                self._called_to_help += 1
                self._call(0)
            return job

    def _is_measuring(self) -> bool:
        """Return whether the leader's next task is to run alone. Called under the lock."""
        return self._leader_runs and time.monotonic() >= self._measure_at

    def _run(self, job: _Job, lead: int) -> None:
        number = job.number
        slot = number & SLOT_MASK
        environ = self._environ.copy()
        environ.update(job.environ)
        environ["wsgi.input"] = io.BytesIO(b"".join(job.parts) if len(job.parts) > 1 else job.parts[0])
        count = self._begun_count
        with self._permits:
            cpu = time.thread_time()
            began = time.monotonic()
            self._begun[slot] = began
            status, outcome, excerpt, reason = answer(self._app, environ)
            if os.getpid() != self._pid:
                # The task has forked, and this is the child: it may not answer too.
                os._exit(1)
            self._begun[slot] = SUCCEEDED if status is not None and status // 100 == 2 and not outcome else ENDED
            ended = time.monotonic()
            waited = ended - began - (time.thread_time() - cpu)
        result = DeliveryResult(number, status, outcome, excerpt.decode("latin-1"), int((ended - began) * 1e6), reason)
        with self._lock:
            self._running -= 1
            if lead and lead == self._lead:
                self._leader_runs = False
            if not self._running and count == self._begun_count:
                self._measure(waited, ended)
            if not self._results:
                self._oldest_result = ended
            self._results.append(result)
            is_due = len(self._results) >= GATHERED or ended - self._oldest_result >= GATHER_SECONDS
        if is_due:
            self._flush()

    def _measure(self, waited: float, now: float) -> None:
        """Take note of how long a task that ran alone has waited. Called under the lock."""
        self._samples += 1
        self._waited_seconds += waited
        if self._samples >= _SAMPLES:
            self._tasks_wait = self._waited_seconds / self._samples > WAITING_SECONDS
            self._samples, self._waited_seconds = 0, 0.0
            self._measure_at = now + _MEASURE_EVERY_SECONDS

    def _watch(self) -> None:
        """Pass the lead on when the leader's task lasts, and send the results that nobody else sends."""
        while True:
            self._alarm.acquire()
            seen = 0
            while True:
                time.sleep(TICK_SECONDS)
                now = time.monotonic()
                with self._lock:
                    if not self._leader_runs and not self._results:
                        self._watching = False
                        break
                    if self._leader_runs and seen == self._begun_count:
                        self._tasks_wait = True
                        self._measure_at = now + _MEASURE_EVERY_SECONDS
                        self._samples, self._waited_seconds = 0, 0.0
                        self._pass_lead()
                    seen = self._begun_count
                    is_due = bool(self._results) and now - self._oldest_result >= TICK_SECONDS
                if is_due:
                    self._flush()

    def _flush(self) -> None:
        """Send the results that were gathered."""
        if not self._results:
            return
        with self._sending:
            with self._lock:
                results, self._results = self._results, []
            if results:
                self._send_locked(frames.results_frame(results))

    def _send(self, messages: Sequence[bytes]) -> None:
        with self._sending:
            for message in messages:
                self._send_locked(message)

    def _send_locked(self, message: bytes) -> None:
        try:
            self._connection.sendall(message)
        except OSError as error:
            # The queue process has ended, and this process is about to be killed. Or a task has closed the descriptor.
            logger.error("The results of tasks can't be sent: %s.", error)
            self._on_failure()

    def _read(self) -> bool:
        """Wait for messages, and take what they bring; return false at the end of the channel."""
        try:
            data = self._connection.recv(_READ_BYTES)
        except OSError as error:
            logger.error("No more tasks can be received: %s.", error)
            self._on_failure()
            return False
        if not data:
            return False
        for kind, content in self._reader.feed(data):
            if kind == frames.DELIVER:
                self._delivered(*frames.read_deliver(content))
            elif kind == frames.BODY:
                self._add_part(*frames.read_body(content))
            elif kind == frames.WITHDRAW:
                with self._lock:
                    numbers = self._take_back(only_ahead=content == frames.WITHDRAW_AHEAD)
                self._send([frames.handed_back_frame(numbers)])
            else:
                raise frames.BadFrameError(f"a message of kind {kind}, which only an app process sends")
        return True

    def _delivered(self, limit: int, deliveries: Sequence[frames.Delivered]) -> None:
        with self._lock:
            self._limit = limit
            for delivered in deliveries:
                job = _Job(delivered)
                if job.missing:
                    self._incomplete[job.number] = job
                else:
                    self._line(job).append(job)
            numbers = self._take_back() if self._stopping else []
        if numbers:
            self._send([frames.handed_back_frame(numbers)])

    def _add_part(self, number: int, part: bytes) -> None:
        with self._lock:
            job = self._incomplete.get(number)
            if job is None:
                return  # it was handed back
            job.parts.append(part)
            job.missing -= len(part)
            if job.missing < 0:
                raise frames.BadFrameError("a body is longer than announced")
            if not job.missing:
                del self._incomplete[number]
                self._line(job).append(job)

    def _line(self, job: _Job) -> deque[_Job]:
        return self._first if job.is_first else self._ahead

    def _take_back(self, *, only_ahead: bool = False) -> list[int]:
        """Forget the tasks that have not begun; return their numbers. Called under the lock."""
        numbers = [job.number for job in self._ahead]
        self._ahead.clear()
        if not only_ahead:
            numbers += [*(job.number for job in self._first), *self._incomplete]
            self._first.clear()
            self._incomplete.clear()
        return numbers
