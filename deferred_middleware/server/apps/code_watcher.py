"""Reports changes in the code of an app.

    with CodeWatcher({"default": Path("web"), "background": Path("worker")}, on_change):
        ...         # on_change("background", [Path("…/worker/tasks.py")]), in a thread of its own

The whole folder of an app is watched, so new modules are found too. Only Python files count, without those of installed
packages. The package ``watchfiles``, which the extra ``reload`` installs, does the watching.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

import watchfiles

from deferred_middleware.errors import ServerError

_START_SECONDS = 30.0
# A change is reported when nothing has changed for this long: an editor, or git, may write several files.
_QUIET_MS = 100

_NO_CODE = {*watchfiles.DefaultFilter.ignore_dirs, "site-packages"}

logger = logging.getLogger(__name__)
# It logs the number of changes, also of other files.
logging.getLogger("watchfiles").setLevel(logging.WARNING)


class CodeWatcher:
    """While it is entered, calls ``on_change`` with a service and the files in its directory that have changed.

    Raises :class:`ServerError` when a directory can't be watched.
    """

    def __init__(self, directories: Mapping[str, Path], on_change: Callable[[str, list[Path]], None]) -> None:
        self._directories = {service: directory.resolve() for service, directory in directories.items()}
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
                watch_filter=_may_matter,
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
            files = {file for path in paths for file in _python_files(path) if _is_code(file, directory)}
            if files:
                self._on_change(service, sorted(files))


def _may_matter(change: watchfiles.Change, path: str) -> bool:
    """Accept Python files, and new folders, which may contain some already."""
    return path.endswith(".py") or (change is watchfiles.Change.added and os.path.isdir(path))


def _python_files(path: Path) -> Iterable[Path]:
    # watchfiles does not report files that were in a folder before it was watched.
    return path.rglob("*.py") if path.is_dir() else [path]


def _is_code(path: Path, directory: Path) -> bool:
    """Tell whether a file is in a directory, but not in one of its folders that hold no code of the app."""
    # The path of the directory itself doesn't matter. Editors and checkers put hidden files and copies beside a file.
    return (
        path.is_relative_to(directory)
        and not path.name.startswith((".", "flycheck_"))
        and not _NO_CODE & set(path.relative_to(directory).parts)
    )


class _StopEvent(threading.Event):
    """Ends the watching. watchfiles asks whether it is set as soon as it watches, which sets ``watching``."""

    def __init__(self) -> None:
        super().__init__()
        self.watching = threading.Event()

    def is_set(self) -> bool:
        self.watching.set()
        return super().is_set()
