"""The SQLite database of a task store: its lock, its schema version, its connections, its counts and its clock."""

from __future__ import annotations

import itertools
import logging
import os
import secrets
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from deferred_middleware.errors import ServerError
from deferred_middleware.server.store.claims import Claims
from deferred_middleware.server.store.counts import Tally, TaskCounts
from deferred_middleware.server.store.files import FileLock, OpenFiles, sync_directory
from deferred_middleware.server.store.listing.filters import install as install_filters
from deferred_middleware.server.store.records import Retention
from deferred_middleware.server.store.statistics.earlier_failures import create_functions
from deferred_middleware.server.store.statistics.spans import SpanCounters
from deferred_middleware.server.store.upkeep.checksum import read_any_text
from deferred_middleware.server.store.upkeep.claim_record import ClaimRecord, read_claims
from deferred_middleware.server.store.upkeep.commit_record import CommitStamps
from deferred_middleware.server.store.upkeep.disk_reserve import DiskReserve, is_disk_full
from deferred_middleware.server.store.upkeep.log_check import check_files, record_path
from deferred_middleware.server.store.upkeep.salvage import damaged, finish_interrupted, is_damage, repair_if_damaged
from deferred_middleware.server.store.upkeep.shrinking import Shrinker, free_pages, free_some, use_incremental
from deferred_middleware.server.store.upkeep.steady_clock import SteadyClock
from deferred_middleware.server.store.writer import GroupCommit, GroupCommitWriter, Operation

logger: Final = logging.getLogger(__name__)

T = TypeVar("T")

Parameters = Sequence[Any] | dict[str, Any]

SCHEMA_VERSION = 6

BATCH = 1000
"""How many rows one operation changes at most if there may be many, because other operations wait for it."""

_JOURNAL_SIZE_LIMIT_BYTES = 64 * 1024 * 1024
_BUSY_TIMEOUT_MS = 5000
# Enough for the indexes of a million tasks; for more, the operating system's cache serves.
_CACHE_KIB = 64 * 1024


def open_writer(path: Path) -> sqlite3.Connection:
    """Open the only connection that writes; create the file if it does not exist.

    Raises :class:`ServerError` if the file is not a task store, or if a newer version of this package has written it.
    """
    if not path.exists():
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        sync_directory(path.parent)
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)
    try:
        connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
        use_incremental(connection, path)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA journal_size_limit={_JOURNAL_SIZE_LIMIT_BYTES}")
        connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        # Undoing an operation of a transaction is not needed after a crash, so its data need not be in a file.
        connection.execute("PRAGMA temp_store=MEMORY")
        # Some builds overwrite all that is deleted, by way of the log. On a full disk, a purge has no space for that.
        connection.execute("PRAGMA secure_delete=FAST")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION or version < 0:
            raise ServerError(
                f"{path} has schema version {version} and this package knows {SCHEMA_VERSION}: "
                "use the version that wrote it, or choose another --data-dir."
            )
        _bring_up_to_date(connection, version)
    except sqlite3.Error as error:
        connection.close()
        raise ServerError(f"{path} can't be used as a task store: {error}.") from error
    except BaseException:
        connection.close()
        raise
    return connection


def _bring_up_to_date(connection: sqlite3.Connection, version: int) -> None:
    """Create the tables of an empty file, or migrate those of an earlier version.

    Each script is one transaction. After a crash, the file is entirely of one version or of the next.
    """
    # A script may replace a table that others refer to. The setting can't change inside a transaction.
    connection.execute("PRAGMA foreign_keys=OFF")
    scripts = resources.files(__package__)
    if version == 0:
        connection.executescript(scripts.joinpath("schema.sql").read_text("utf-8"))
        version = SCHEMA_VERSION
    while version < SCHEMA_VERSION:
        create_functions(connection)
        logger.info("Migrating the task store from version %d to version %d.", version, version + 1)
        connection.executescript(scripts.joinpath(f"schema-{version}-to-{version + 1}.sql").read_text("utf-8"))
        version += 1
    connection.execute("PRAGMA foreign_keys=ON")


def open_reader(path: Path) -> sqlite3.Connection:
    """Open a connection that can only read, so that only the writer's connection ever writes or checkpoints."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA query_only=ON")
    install_filters(connection)
    return connection


class Reader:
    """A connection that can only read; several threads may share it. ``on_damage`` is called if it finds damage."""

    def __init__(self, path: Path, on_damage: Callable[[sqlite3.DatabaseError], object]) -> None:
        self._on_damage = on_damage
        # Guards the connection.
        self._lock = threading.Lock()
        self._connection = open_reader(path)

    def read(self, sql: str, parameters: Parameters = ()) -> list[Any]:
        """Return the rows of one statement."""
        return self.use(lambda connection: connection.execute(sql, parameters).fetchall())

    def use(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Return the result of an operation on the connection."""
        with self._lock:
            try:
                return read_any_text(self._connection, operation)
            except sqlite3.DatabaseError as error:
                if is_damage(error):
                    self._on_damage(error)
                raise

    def close(self) -> None:
        """Close the connection after the current read."""
        with self._lock:
            self._connection.close()


class NameChooser:
    """Chooses names for tasks that have none. ``now_usec`` returns the time."""

    def __init__(self, now_usec: Callable[[], int]) -> None:
        self._now_usec = now_usec
        # Guards the time in the last name. Any thread may ask for a name.
        self._lock = threading.Lock()
        self._last_usec = 0

    def __call__(self) -> str:
        """Return a name of digits, as on the platform, that this process has not returned before.

        Names begin with the time, so that the index of names grows only at its end, however large it is.
        """
        with self._lock:
            self._last_usec = max(self._last_usec + 1, self._now_usec())
            return f"{self._last_usec:016d}{secrets.randbelow(10_000):04d}"


class Background(Protocol):
    """What shrinks the file when nothing else has to be done, such as :class:`Shrinker`."""

    def wake(self) -> None:
        """Look whether there are pages to free."""

    def close(self) -> None:
        """End."""


@dataclass(frozen=True, kw_only=True)
class StoreDrivers:
    """What the store does with threads. A simulation has others, which run when it says."""

    make_writer: Callable[..., GroupCommit] = GroupCommitWriter
    make_shrinker: Callable[[Callable[[], int], Callable[[], object]], Background] = Shrinker


class Database:
    """The open SQLite file ``path``, with what the parts of the task store share.

    ``clock`` returns the wall clock's seconds since the epoch, and ``elapsed`` seconds that only grow. Tasks that were
    running when a server ended are ready again once the database is open. Raises
    :class:`~deferred_middleware.errors.ServerError` at once if another process has the file open, or if the file can't
    be used. ``on_failure`` is called if nothing can be written any more.

    Attributes:
        writer: Runs all operations that change the database.
        reader: Serves people and the taskqueue API.
        counters: The figures of what happens, which the writer writes.
        lanes_reader: Serves the scheduler, which must not wait for slow reads of others.
        counts: The numbers of tasks. In them, claimed tasks are ready.
        claims: The claimed tasks.
        next_id: Returns an ID for a new task, which this process has not returned before. For operations.
        retention: How long finished tasks are kept.
        last_wall_usec: The wall clock's time at the last commit before, None if it is not known.
        steady_clock: The time by which names are blocked.
        elapsed: Seconds that only grow.
        choose_name: Returns a name for a task that has none.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float],
        elapsed: Callable[[], float],
        retention: Retention,
        on_failure: Callable[[ServerError], object],
        drivers: StoreDrivers,
    ) -> None:
        self._clock = clock
        self.elapsed: Callable[[], float] = elapsed
        self._on_failure = on_failure
        # Several threads may find damage; the caller hears of it once. Guards the flag.
        self._damage_lock = threading.Lock()
        self._is_damaged = False
        self.retention = retention
        path.parent.mkdir(parents=True, exist_ok=True)
        # The lock is on a file of its own: closing any descriptor of a SQLite database drops the locks that SQLite
        # itself has on it.
        self._lock = FileLock(path.with_name(path.name + ".lock"))
        claims_path = path.with_name(path.name + ".claimed")
        try:
            finish_interrupted(path)
            found = check_files(path, open_reader)
            repair = repair_if_damaged(path, open_reader, open_writer)
            connection = open_writer(path)
            try:
                reserve = self._reserve = DiskReserve(path.with_name(path.name + ".reserve"), elapsed=elapsed)
                try:
                    self._make_running_ready(connection, claims_path)
                except sqlite3.OperationalError as error:
                    if not is_disk_full(error) or not reserve.free():
                        raise
                    self._make_running_ready(connection, claims_path)
                self._claim_record = ClaimRecord(claims_path)
                self.claims: Claims = Claims(self._claim_record)
                # A late result finds no other task, because no ID is used twice while a claim may hold.
                (newest,) = connection.execute("SELECT coalesce(max(id), 0) FROM tasks").fetchone()
                self.next_id: Callable[[], int] = itertools.count(newest + 1).__next__
                self.counts: TaskCounts = TaskCounts(connection, monotonic=elapsed)
                self.counters: SpanCounters = SpanCounters(connection, self.now_usec, elapsed)
                self.last_wall_usec: int | None = found.recorded.wall_usec if found.recorded else None
                self.steady_clock: SteadyClock = SteadyClock(
                    last_usec=found.last_usec,
                    last_wall_usec=self.last_wall_usec,
                    wall_usec=self.now_usec(),
                    elapsed=elapsed,
                )
                self._stamps = CommitStamps(
                    record_path(path),
                    last_usec=found.last_usec,
                    now_usec=self.steady_clock.now_usec,
                    wall_usec=self.now_usec,
                    elapsed=elapsed,
                )
                repair.report(path, self.counts.stored_tasks)
                if found.report(connection, self.counts.stored_tasks) or repair.problems:
                    self._stamps.restart(connection, self.counts.stored_tasks)
                self.reader: Reader = Reader(path, self._found_damage)
                self.lanes_reader: Reader = Reader(path, self._found_damage)
            except BaseException:
                connection.close()
                raise
        except BaseException:
            self._lock.release()
            raise
        files = OpenFiles(path, path.with_name(path.name + "-wal"))
        self.writer: GroupCommit = drivers.make_writer(
            connection,
            self.counts,
            self.claims,
            self.counters,
            reserve,
            self._stamps,
            check_files=files.check,
            on_failure=on_failure,
        )
        self.shrinker: Background = drivers.make_shrinker(self._shrink_step, self.writer.checkpoint)
        self.shrinker.wake()
        self.choose_name: NameChooser = NameChooser(self.now_usec)
        # Only the thread that owns the store closes it.
        self._is_closed = False

    def close(self) -> None:
        """Commit the pending operations, close the file, and release the lock on it. Further calls do nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self.shrinker.close()
        # Before the writer: when the last connection closes, it copies the log into the database, and only the writer's
        # connection can do that.
        self.reader.close()
        self.lanes_reader.close()
        self.writer.close()
        self._stamps.close()
        self._claim_record.close()
        self._lock.release()

    def commit_seconds(self) -> float:
        """Return how long durable commits take at this moment; infinity if there was none yet."""
        return self._stamps.seconds

    def now_usec(self) -> int:
        """Return the wall clock's time."""
        return int(self._clock() * 1e6)

    def blocked_until_usec(self) -> int:
        """Return until when the name of a task that finishes now stays blocked, by the steady clock."""
        return self.steady_clock.now_usec() + int(self.retention.tombstone_seconds * 1e6)

    @property
    def is_disk_full(self) -> bool:
        """Whether the store accepts no tasks, because the disk was full when something was written last."""
        return self._reserve.is_free

    def read(self, sql: str, parameters: Parameters = ()) -> list[Any]:
        """Return the rows of one statement."""
        return self.reader.read(sql, parameters)

    def write(self, operation: Operation[T], *, adds_tasks: bool = False) -> T:
        """Return the result of an operation after its commit. Raises what the operation or the commit raises."""
        return self.writer.submit(operation, adds_tasks=adds_tasks).result()

    def write_in_batches(self, operation: Operation[int]) -> int:
        """Repeat an operation that changes at most :data:`BATCH` rows until it finds fewer; return their number."""
        total = 0
        while True:
            number = self.write(operation)
            total += number
            if number < BATCH:
                self.shrinker.wake()
                return total

    def _found_damage(self, error: BaseException) -> None:
        with self._damage_lock:
            if self._is_damaged:
                return
            self._is_damaged = True
        self._on_failure(damaged(error))

    def _shrink_step(self) -> int:
        # Most of the time there is nothing to do, and then nothing is written.
        if not self.reader.use(free_pages):
            return 0
        return self.writer.submit(lambda connection, _tally: free_some(connection), durable=False).result()

    def _make_running_ready(self, connection: sqlite3.Connection, claims_path: Path) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            interrupted = self._make_claimed_due(connection, claims_path)
            queues = connection.execute("SELECT queue FROM counts WHERE state = 'running' AND number <> 0").fetchall()
            tally = Tally()
            for (queue,) in queues:
                # Versions before 5 wrote claims into the database.
                number = connection.execute(
                    "UPDATE tasks SET state = 'ready', claim_token = NULL, eta_usec = min(eta_usec, ?)"
                    " WHERE queue = ? AND state = 'running'",
                    (self.now_usec(), queue),
                ).rowcount
                tally[queue, "running"] -= number
                tally[queue, "ready"] += number
            TaskCounts.write(connection, tally)
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        interrupted += sum(number for (_queue, state), number in tally.items() if state == "ready")
        if interrupted:
            logger.warning(
                "Interrupted tasks that run again: %d (the last server ended during their attempts)", interrupted
            )

    def _make_claimed_due(self, connection: sqlite3.Connection, claims_path: Path) -> int:
        """Make the tasks due that the last server had claimed; return how many there are.

        They were due when they were claimed. If the clock was set back since, they are still due.
        """
        return sum(
            connection.execute(
                "UPDATE tasks SET eta_usec = min(eta_usec, ?) WHERE id = ? AND retry_count = ? AND state = 'ready'",
                (self.now_usec(), task_id, retry_count),
            ).rowcount
            for task_id, retry_count in read_claims(claims_path)
        )
