"""Which changes in an app's directory the watcher reports, on the real file system."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from deferred_middleware.errors import ServerError
from deferred_middleware.server.apps.code_watcher import CodeWatcher

WAIT_SECONDS = 20.0

Told = queue.SimpleQueue[tuple[str, list[Path]]]
Watch = Callable[..., "Told"]


@pytest.fixture
def watch() -> Iterator[Watch]:
    """Return a function that watches directories, by service, and returns a queue of the reported changes."""
    watchers: list[CodeWatcher] = []

    def start(patterns: Sequence[str] = (), ignored: Sequence[Path] = (), **directories: Path) -> Told:
        told: Told = queue.SimpleQueue()

        def tell(service: str, files: list[Path]) -> None:
            told.put((service, files))

        watchers.append(CodeWatcher(directories, tell, patterns=patterns, ignored=ignored))
        watchers[-1].__enter__()
        return told

    yield start
    for watcher in watchers:
        watcher.__exit__()


@pytest.mark.parametrize("name", ["main.py", "package/deep/module.py"])
def test_a_changed_file_is_told(tmp_path: Path, watch: Watch, name: str) -> None:
    """A written Python file, at any depth, is reported with its service."""
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("1")
    told = watch(default=tmp_path)
    (tmp_path / name).write_text("2")
    assert told.get(timeout=WAIT_SECONDS) == ("default", [tmp_path / name])


def test_files_that_come_and_go_are_told(tmp_path: Path, watch: Watch) -> None:
    """New, replaced and removed modules are reported."""
    told = watch(default=tmp_path)
    (tmp_path / "new.py").write_text("1")
    assert told.get(timeout=WAIT_SECONDS) == ("default", [tmp_path / "new.py"])
    (tmp_path / "saved.tmp").write_text("2")
    (tmp_path / "saved.tmp").replace(tmp_path / "new.py")
    assert told.get(timeout=WAIT_SECONDS) == ("default", [tmp_path / "new.py"])
    (tmp_path / "new.py").unlink()
    assert told.get(timeout=WAIT_SECONDS) == ("default", [tmp_path / "new.py"])


def test_a_folder_is_told_with_what_is_in_it(tmp_path: Path, watch: Watch) -> None:
    """If a directory is moved in, its modules are reported; an empty directory is not."""
    made = tmp_path / "made"
    (made / "deep").mkdir(parents=True)
    (made / "deep" / "module.py").write_text("1")
    watched = tmp_path / "watched"
    watched.mkdir()
    told = watch(default=watched)
    (watched / "empty").mkdir()
    made.rename(watched / "moved")
    assert told.get(timeout=WAIT_SECONDS) == ("default", [watched / "moved" / "deep" / "module.py"])


def test_what_is_not_the_apps_code_is_not_told(tmp_path: Path, watch: Watch) -> None:
    """Data files, compiled files, editors' temporary files and installed packages are not reported."""
    ignored = ["data.txt", ".#main.py", "flycheck_main.py", "__pycache__/main.pyc"]
    ignored += ["env/site-packages/other.py", ".venv/lib/other.py", ".git/hook.py", ".hidden/other.py"]
    ignored += ["templates/.page.html.swp", "templates/page.html~", "templates/4913", "node_modules/page.html"]
    for name in ignored:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    told = watch(default=tmp_path)
    for name in [*ignored, "main.py"]:
        (tmp_path / name).write_text("1")
    files: set[Path] = set()
    while tmp_path / "main.py" not in files:
        files.update(told.get(timeout=WAIT_SECONDS)[1])
    assert files == {tmp_path / "main.py"}


def test_where_the_folder_is_does_not_matter(tmp_path: Path, watch: Watch) -> None:
    """An app whose own directory has a name that is ignored elsewhere is still watched."""
    directory = tmp_path / "site-packages" / "app"
    directory.mkdir(parents=True)
    told = watch(default=directory)
    (directory / "main.py").write_text("1")
    assert told.get(timeout=WAIT_SECONDS) == ("default", [directory / "main.py"])


def test_each_service_has_its_folder(tmp_path: Path, watch: Watch) -> None:
    """A change is reported for each service whose directory contains the file."""
    for name in ("web", "worker"):
        (tmp_path / name).mkdir()
    told = watch(web=tmp_path / "web", worker=tmp_path / "worker", again=tmp_path / "worker")
    (tmp_path / "worker" / "main.py").write_text("1")
    services = {told.get(timeout=WAIT_SECONDS)[0] for _ in range(2)}
    (tmp_path / "web" / "main.py").write_text("1")
    assert services == {"worker", "again"}
    assert told.get(timeout=WAIT_SECONDS) == ("web", [tmp_path / "web" / "main.py"])


def test_a_folder_that_can_not_be_watched_is_told(tmp_path: Path) -> None:
    """If a directory can't be watched, the error names it and no thread is left."""
    before = threading.active_count()
    with pytest.raises(ServerError) as caught:
        CodeWatcher({"default": tmp_path / "missing"}, lambda service, files: None).__enter__()
    assert f"--reload can't watch {tmp_path / 'missing'}: " in str(caught.value)
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("name", "patterns"),
    [
        ("page.html", []),
        ("pages/page.jinja2", []),
        ("app/templates/mail.txt", []),
        ("site.toml", ["*.toml"]),
        ("deep/site.toml", ["*.toml"]),
        ("static/deep/style.css", ["static/*.css"]),
        ("static/deep/style.css", ["./static/"]),
        ("deep/locale/de.mo", ["locale"]),
    ],
)
def test_files_that_match_a_pattern_are_told(tmp_path: Path, watch: Watch, name: str, patterns: Sequence[str]) -> None:
    """Templates are reported, and the files that further patterns match."""
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("1")
    told = watch(patterns=patterns, default=tmp_path)
    (tmp_path / name).write_text("2")
    assert told.get(timeout=WAIT_SECONDS) == ("default", [tmp_path / name])


def test_ignored_paths_are_not_told(tmp_path: Path, watch: Watch) -> None:
    """What the server itself writes is not reported, even if a pattern matches it."""
    (tmp_path / "data").mkdir()
    told = watch(patterns=["*"], ignored=[tmp_path / "data", tmp_path / "ready.json"], default=tmp_path)
    for name in ("data/tasks.sqlite", "ready.json", "main.py"):
        (tmp_path / name).write_text("1")
    assert told.get(timeout=WAIT_SECONDS) == ("default", [tmp_path / "main.py"])
