"""Keeps the queues as ``queue.yaml`` has them, also when the file changes.

    with QueueYamlWatcher(Path("queue.yaml"), registry):
        ...                                     # registry has the file's queues, and soon those of a changed file

The file is looked at once a second. A stat a second costs nothing that could be measured, sees every way in which
editors and mounted folders replace a file, and needs no further package; a watcher such as ``watchfiles`` wakes up more
often than that while nothing happens. What is wrong with a changed file is logged, and the last good configuration
stays.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from deferred_middleware.server.config.queue_yaml import QueueYamlError, read_queue_yaml
from deferred_middleware.server.config.queueregistry import QueueRegistry

_log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""How often the file is looked at."""
# A file that is being written is read when it has stayed the same for so long.
_SETTLED_SECONDS = 0.1

_Stamp = tuple[int, int, int] | None


class QueueYamlWatcher:
    """Has ``registry`` follow the file at ``path``, while it is entered.

    The file may be missing, then it is waited for, unless it is ``required``. Raises :class:`QueueYamlError` when it
    can't be used at the start.
    """

    def __init__(
        self, path: Path, registry: QueueRegistry, *, required: bool = False, look_seconds: float = LOOK_SECONDS
    ) -> None:
        self._path = path
        self._registry = registry
        self._look_seconds = look_seconds
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
            except Exception:  # noqa: BLE001 - the next change has to be seen all the same
                _log.exception("%s could not be followed.", self._path)

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
            _log.error("%s The queues stay as they were.", error)

    def _read(self) -> None:
        queues = read_queue_yaml(self._path)
        self._registry.replace(queues)
        _log.info("%s is in force; the queues: %s", self._path, ", ".join(sorted(self._registry)))

    def _look(self) -> _Stamp:
        try:
            found = self._path.stat()
        except OSError:
            # Missing, or out of reach: to read it will say why.
            return None
        return (found.st_mtime_ns, found.st_size, found.st_ino)
