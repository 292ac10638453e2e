"""Reports changes in the code of an app.

    with CodeWatcher({"default": Path("web"), "background": Path("worker")}, on_change):
        ...         # on_change("background", [Path("…/worker/tasks.py")]), in a thread of its own

The whole folder of an app is watched, so new modules are found too. Files count that match one of :data:`PATTERNS` or
of the given patterns, without those of installed packages. A pattern without a wildcard is the name of a file, or
of a folder with everything in it. The package ``watchfiles``, which the extra ``reload`` installs, does the watching.
"""

from __future__ import annotations

import fnmatch
import logging
import os
import re
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Final

import watchfiles

from deferred_middleware.errors import ServerError

_START_SECONDS = 30.0
# A change is reported when nothing has changed for this long: an editor, or git, may write several files.
_QUIET_MS = 100

PATTERNS = ("*.py", "templates", "*.html", "*.htm", "*.jinja", "*.jinja2", "*.j2", "*.mako")
"""The files that always count: frameworks keep templates in memory, so they are code too."""

_NO_CODE = {*watchfiles.DefaultFilter.ignore_dirs, "site-packages"}
# Files that editors and checkers put beside a file. vim creates and removes 4913.
_TEMPORARY = re.compile("|".join([*watchfiles.DefaultFilter.ignore_entity_patterns, r"^\.", "^4913$", r"\.tmp$"]))

logger: Final = logging.getLogger(__name__)
# It logs the number of changes, also of other files.
logging.getLogger("watchfiles").setLevel(logging.WARNING)


class CodeWatcher:
    """While it is entered, calls ``on_change`` with a service and the files in its directory that have changed.

    ``patterns`` are further patterns of files that count. Nothing in the paths ``ignored`` counts. Raises
    :class:`ServerError` when a directory can't be watched.
    """

    def __init__(
        self,
        directories: Mapping[str, Path],
        on_change: Callable[[str, list[Path]], None],
        *,
        patterns: Iterable[str] = (),
        ignored: Iterable[Path] = (),
    ) -> None:
        self._directories = {service: directory.resolve() for service, directory in directories.items()}
        self._patterns = (*PATTERNS, *(pattern.removeprefix("./").rstrip("/") for pattern in patterns))
        self._ignored = [path.resolve() for path in ignored]
        self._on_change = on_change
        self._ending = _StopEvent()
        # Written by the thread before it sets ``watching``.
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="code-watcher", daemon=True)

    def __enter__(self) -> CodeWatcher:
        self._thread.start()
        if not self._ending.watching.wait(_START_SECONDS) or self._error is not None:
            self._ending.set()
            self._thread.join(_START_SECONDS)
            folders = ", ".join(sorted({str(directory) for directory in self._directories.values()}))
            raise ServerError(
                f"--reload can't watch {folders}: {self._error or 'it took too long'}. Start the server in the folder "
                "of the app's own code, or set WATCHFILES_FORCE_POLLING=true."
            ) from self._error
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            changes = watchfiles.watch(
                *sorted(set(self._directories.values())),
                watch_filter=self._may_matter,
                step=_QUIET_MS,
                stop_event=self._ending,
            )
            for changed in changes:
                self._report([Path(path) for _kind, path in changed])
        except Exception as error:
            self._error = error
            if self._ending.watching.is_set():
                logger.exception("Changes in the code are no longer noticed; restart the server.")
            self._ending.watching.set()

    def _report(self, paths: Collection[Path]) -> None:
        for service, directory in self._directories.items():
            # watchfiles does not report files that were in a folder before it was watched.
            files = {file for path in paths for file in ([path] if not path.is_dir() else path.rglob("*"))}
            changed = sorted(file for file in files if self._counts(file, directory) and not file.is_dir())
            if changed:
                self._on_change(service, changed)

    def _may_matter(self, change: watchfiles.Change, path: str) -> bool:
        """Accept files that count, and new folders, which may contain some already."""
        if change is watchfiles.Change.added and os.path.isdir(path):
            return True
        return any(self._counts(Path(path), directory) for directory in self._directories.values())

    def _counts(self, path: Path, directory: Path) -> bool:
        """Tell whether a file is in a directory, matches a pattern, and is in no folder that holds no code."""
        # The path of the directory itself doesn't matter.
        if not path.is_relative_to(directory) or any(path.is_relative_to(ignored) for ignored in self._ignored):
            return False
        parts = path.relative_to(directory).parts
        if not parts or _TEMPORARY.search(parts[-1]):
            return False
        if any(part in _NO_CODE or part.startswith(".") for part in parts[:-1]):
            return False
        candidates = {*parts, *("/".join(parts[: count + 1]) for count in range(len(parts)))}
        return any(fnmatch.fnmatchcase(one, pattern) for one in candidates for pattern in self._patterns)


class _StopEvent(threading.Event):
    """Ends the watching. watchfiles asks whether it is set as soon as it watches, which sets ``watching``."""

    def __init__(self) -> None:
        super().__init__()
        self.watching = threading.Event()

    def is_set(self) -> bool:
        self.watching.set()
        return super().is_set()
