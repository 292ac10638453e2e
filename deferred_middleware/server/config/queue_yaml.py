"""``queue.yaml``, read by the SDK's own parser, and followed while the server runs.

    queues = read_queue_yaml(Path("queue.yaml"))

    with QueueYamlWatcher(Path("queue.yaml"), registry):
        ...                                     # registry has the file's queues, and follows changes of the file

The fields are described at https://cloud.google.com/appengine/docs/standard/reference/queueref. For a wrong file,
:class:`QueueYamlError` names the file, the line, and the legal values of the field. Besides the parser's own checks,
each name may appear only once, and numbers must make sense.

The watcher looks at the file once a second. One ``stat`` per second has no measurable cost, notices every way in which
editors and mounted folders replace a file, and needs no further package. A watcher such as ``watchfiles`` wakes up more
often than that. If a changed file is wrong, the error is logged and the queues stay as they are.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from google.appengine.api import queueinfo, yaml_errors

from deferred_middleware.server.config.queues import (
    PLATFORM_BUCKET_SIZE,
    PLATFORM_RATE_PER_SECOND,
    QueueConfig,
    QueueRegistry,
)
from deferred_middleware.server.config.yaml_files import (
    YamlFileError,
    compose,
    is_mapping,
    is_sequence,
    line_of,
    problem_of,
    read_text,
    value_of,
    wrong_value,
)
from deferred_middleware.server.store.records import RetryPolicy
from deferred_middleware.wire import protocol

logger: Final = logging.getLogger(__name__)

FILE_NAMES = ("queue.yaml", "queue.yml")
"""The possible names of the file, in the order in which they are tried."""

LOOK_SECONDS = 1.0
"""Time between two looks at the file."""
# A changed file is read after it has stayed the same for this long, because it may still be being written.
_SETTLED_SECONDS = 0.1

_MAX_INT32 = 2**31 - 1
_MAX_INT64 = 2**63 - 1
_INTEGERS = ("bucket_size", "max_concurrent_requests", "task_retry_limit", "max_doublings")
_PLATFORM_LIMITS = {"rate": 500, "bucket_size": 500, "max_concurrent_requests": 5_000}
"""The largest values that App Engine accepts.

Source: https://cloud.google.com/tasks/docs/reference/rest/v2/projects.locations.queues#RateLimits. It has other names.
"""

_PUSH_ONLY = ("rate", "bucket_size", "max_concurrent_requests", "target")
# The legal values of each field, for error messages.
_TAKES = {
    "name": "letters, digits and hyphens, up to 100 of them",
    "mode": "push or pull",
    "rate": "a number and a unit, such as 5/s (or /m, /h, /d), or 0, which pauses the queue",
    "bucket_size": "a whole number, at least 1",
    "max_concurrent_requests": "a whole number, at least 1",
    "target": "[version.]service, in lower case",
    "retry_parameters": "task_retry_limit, task_age_limit, min_backoff_seconds, max_backoff_seconds, max_doublings",
    "task_retry_limit": "a whole number, at least 0",
    "task_age_limit": "a number and a unit, such as 2d (or s, m, h), more than 0",
    "min_backoff_seconds": "a number, at least 0",
    "max_backoff_seconds": "a number, at least 0 and at least min_backoff_seconds",
    "max_doublings": "a whole number, at least 0",
}


class QueueYamlError(YamlFileError):
    """``queue.yaml`` can't be read or is wrong."""


def read_queue_yaml(path: Path) -> list[QueueConfig]:
    """Return the queues of a file. Raises :class:`QueueYamlError` if it can't be read or is wrong."""
    text = read_text(path, QueueYamlError)
    return parse_queue_yaml(text, path=str(path))


def parse_queue_yaml(text: str, *, path: str, warn: Callable[..., object] = logger.warning) -> list[QueueConfig]:
    """Return the queues that ``text`` lists. Errors, which are :class:`QueueYamlError`, name the file ``path``.

    ``warn`` is called with a message and its arguments, as a logger's method is, for what has no effect on App Engine.
    """
    places = _Places(text, path)
    info = _parse(text, path)
    configs: dict[str, QueueConfig] = {}
    for index, entry in enumerate(info.queue or ()):
        # The parser accepts empty names, and names that are too long for the API.
        if not protocol.QUEUE_NAME_PATTERN.fullmatch(entry.name):
            raise _wrong(path, places.line(index, "name"), "name", entry.name)
        if entry.name in configs:
            raise QueueYamlError(path, places.line(index, "name"), f"queue {entry.name} is listed twice.")
        configs[entry.name] = _config(entry, path, places, index, warn)
    return list(configs.values())


def find_queue_yaml(directories: Sequence[Path]) -> Path:
    """Return the path of the first ``queue.yaml`` in these directories; without one, its path in the first of them."""
    for directory in directories:
        for name in FILE_NAMES:
            if (directory / name).exists():
                return directory / name
    return directories[0] / FILE_NAMES[0]


def _parse(text: str, path: str) -> Any:
    try:
        return queueinfo.LoadSingleQueue(text)
    except yaml_errors.EventError as error:
        problem = problem_of(error, _TAKES)
        if isinstance(error.cause, yaml_errors.UnexpectedAttribute):
            problem = f"{problem.partition(' for object')[0]}; the fields of a queue are {', '.join(_TAKES)}"
        raise QueueYamlError(path, line_of(error.event), f"{problem}.") from error
    except (yaml_errors.Error, queueinfo.MalformedQueueConfiguration) as error:
        raise QueueYamlError(path, None, f"{error}") from error


def _config(entry: Any, path: str, places: _Places, index: int, warn: Callable[..., object]) -> QueueConfig:
    retry = _retry(entry, path, places, index)
    if entry.mode == "pull":
        for name in _PUSH_ONLY:
            if getattr(entry, name) is not None:
                warn("%s, line %s: %s has no effect on a pull queue.", path, places.line(index, name), name)
        return QueueConfig(name=entry.name, mode="pull", retry=retry)
    for name in ("bucket_size", "max_concurrent_requests"):
        value = getattr(entry, name)
        if value is not None:
            _check_is_whole(places, index, name)
            if value < 1:
                raise _wrong(path, places.line(index, name), name, value)
            _check_fits(value, name, path, places.line(index, name))
    rate = PLATFORM_RATE_PER_SECOND if entry.rate is None else queueinfo.ParseRate(entry.rate)
    if not math.isfinite(rate):
        raise _wrong(path, places.line(index, "rate"), "rate", entry.rate)
    given = {name: getattr(entry, name) for name in _PLATFORM_LIMITS}
    for name, value in {**given, "rate": rate}.items():
        if value is not None and value > (limit := _PLATFORM_LIMITS[name]):
            warn(
                "%s, line %s: %s is %s; App Engine takes at most %s.",
                path,
                places.line(index, name),
                name,
                given[name],
                f"{limit}/s" if name == "rate" else limit,
            )
    return QueueConfig(
        name=entry.name,
        rate_per_second=rate,
        bucket_size=entry.bucket_size or PLATFORM_BUCKET_SIZE,
        max_concurrent_requests=entry.max_concurrent_requests,
        target=entry.target or None,
        retry=retry,
    )


def _check_fits(value: int, name: str, path: str, line: int | None) -> None:
    """Raise :class:`QueueYamlError` for a number that the API's messages, which have 32-bit fields, can't take."""
    if value > _MAX_INT32:
        raise QueueYamlError(path, line, f"{name}: {value} is too large; the largest value is {_MAX_INT32}.")


def _check_is_whole(places: _Places, index: int, *names: str) -> None:
    """Raise :class:`QueueYamlError` for a value that the SDK's parser would turn into another number, such as 1.5."""
    text = places.text(index, *names)
    try:
        is_whole = float(text).is_integer()
    except ValueError:
        is_whole = False
    if not is_whole:
        raise _wrong(places.path, places.line(index, *names), names[-1], text)


def _check_age(value: str, path: str, line: int | None) -> None:
    try:
        seconds = queueinfo.ParseTaskAgeLimit(value)
    except (queueinfo.MalformedQueueConfiguration, OverflowError) as error:
        raise _wrong(path, line, "task_age_limit", value) from error
    if seconds > _MAX_INT64:
        raise QueueYamlError(path, line, f"task_age_limit: {value} is too large.")
    if seconds < 1:
        raise _wrong(path, line, "task_age_limit", value)


def _retry(entry: Any, path: str, places: _Places, index: int) -> RetryPolicy:
    if entry.retry_parameters is None:
        return RetryPolicy()
    given = {name: value for name, value in entry.retry_parameters.ToDict().items() if value is not None}
    for name, value in given.items():
        line = places.line(index, "retry_parameters", name)
        if name == "task_age_limit":
            _check_age(value, path, line)
            continue
        if name in _INTEGERS:
            _check_is_whole(places, index, "retry_parameters", name)
        # Written so that NaN is rejected.
        if not 0 <= value < math.inf:
            raise _wrong(path, line, name, value)
        if isinstance(value, int):
            _check_fits(value, name, path, line)
    try:
        parameters = queueinfo.TranslateRetryParameters(entry.retry_parameters)
    except queueinfo.MalformedQueueConfiguration as error:
        # Each value is legal, so the two back-offs contradict each other.
        name = "max_backoff_seconds"
        raise _wrong(path, places.line(index, "retry_parameters", name), name, given[name]) from error
    return RetryPolicy(
        retry_limit=parameters.retry_limit if parameters.HasField("retry_limit") else None,
        age_limit_seconds=parameters.age_limit_sec if parameters.HasField("age_limit_sec") else None,
        min_backoff_seconds=parameters.min_backoff_sec,
        max_backoff_seconds=parameters.max_backoff_sec,
        max_doublings=parameters.max_doublings,
    )


def _wrong(path: str, line: int | None, name: str, value: object) -> QueueYamlError:
    return QueueYamlError(path, line, f"{wrong_value(name, value, _TAKES)}.")


class _Places:
    """The lines of the queues' fields in a text. Raises :class:`QueueYamlError` if the text is not a list of queues."""

    def __init__(self, text: str, path: str) -> None:
        self.path = path
        self._root = compose(text, path, QueueYamlError)
        if self._root is None:
            raise QueueYamlError(path, None, "it is empty; it needs at least 'queue:'.")
        if not is_mapping(self._root):
            raise self._misshapen(path, self._root)
        queues = value_of(self._root, "queue")
        if is_sequence(queues):
            for node in queues.value:
                if not is_mapping(node):
                    raise self._misshapen(path, node)
        elif queues is not None and queues.value != "":
            raise self._misshapen(path, queues)

    @staticmethod
    def _misshapen(path: str, node: Any) -> QueueYamlError:
        return QueueYamlError(path, line_of(node), "it must have 'queue:' and, under it, a list of '- name: …'.")

    def line(self, index: int, *names: str) -> int | None:
        """Return the line of a field of the queue with the number ``index`` in the list."""
        node = self._node(index, *names)
        return None if node is None else line_of(node)

    def text(self, index: int, *names: str) -> str:
        """Return the value of such a field as it is written in the file."""
        return str(self._node(index, *names).value)

    def _node(self, index: int, *names: str) -> Any:
        node = value_of(self._root, "queue")
        if not is_sequence(node):
            return None
        node = node.value[index]
        for name in names:
            node = value_of(node, name) or node
        return node


_Stamp = tuple[int, int, int] | None


class QueueYamlWatcher:
    """A context in which a thread keeps ``registry`` up to date with the file at ``path``.

    If the file does not exist, the watcher waits for it, unless it is ``required``. Raises :class:`QueueYamlError` if
    the file is wrong at the start.
    """

    def __init__(
        self, path: Path, registry: QueueRegistry, *, required: bool = False, look_seconds: float = LOOK_SECONDS
    ) -> None:
        self._path = path
        self._registry = registry
        self._look_seconds = look_seconds
        # Written by the constructor, then only by the watcher's thread.
        self._stamp = self._look()
        if self._stamp is not None or required:
            self._read()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="queue-yaml", daemon=True)

    def __enter__(self) -> QueueYamlWatcher:
        self._thread.start()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._ending.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ending.wait(self._look_seconds):
            try:
                self._follow()
            except Exception:
                logger.exception("The check of %s for changes failed.", self._path)

    def _follow(self) -> None:
        stamp = self._look()
        if stamp == self._stamp:
            return
        while not self._ending.wait(_SETTLED_SECONDS):
            settled = self._look()
            if settled == stamp:
                break
            stamp = settled
        self._stamp = stamp
        try:
            self._read()
        except QueueYamlError as error:
            logger.error("%s The queues stay as they are.", error)

    def _read(self) -> None:
        queues = read_queue_yaml(self._path)
        self._registry.replace(queues)
        logger.info("%s is read; the queues are: %s", self._path, ", ".join(sorted(self._registry)))

    def _look(self) -> _Stamp:
        try:
            found = self._path.stat()
        except OSError:
            # The file is missing or not accessible; reading it gives the error.
            return None
        return (found.st_mtime_ns, found.st_size, found.st_ino)
