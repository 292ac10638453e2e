"""The page of queue.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest

from deferred_middleware.server.store.store import TaskStore
from tests.support.visiting import Visitor

TEXT = "queue:\n- name: mail\n  rate: 50/s\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A queue.yaml."""
    path = tmp_path / "queue.yaml"
    path.write_text(TEXT)
    return path


def test_the_file_is_shown(store: TaskStore, file: Path) -> None:
    """The page has the file's text and its path."""
    page = Visitor(store, queue_yaml=file).get("/queue-yaml")
    assert "- name: mail" in page.text
    assert str(file) in page.text
    assert page.button("Preview").command == "deferred-middleware queue-yaml FILE"


def test_a_wrong_line_is_marked(store: TaskStore, file: Path) -> None:
    """The error is at the top, and its line is marked in the text."""
    file.write_text(TEXT.replace("50/s", "<fast>"))
    page = Visitor(store, queue_yaml=file).get("/queue-yaml")
    assert "The file is wrong in line 3." in page.text
    assert '<code class="wrong">  rate: &lt;fast&gt;</code>' in page.html


def test_an_edit_is_previewed_and_not_written(store: TaskStore, file: Path) -> None:
    """The preview says what would change, and keeps the edited text."""
    visitor = Visitor(store, queue_yaml=file)
    page = visitor.post("/queue-yaml", text="queue:\r\n- name: other\r\n  rate: 1/s\r\n")
    assert page.status == 200
    assert "Queue other is new." in page.text
    assert "rate: 1/s" in page.html
    assert file.read_text() == TEXT
    wrong = visitor.post("/queue-yaml", text="</textarea><script>alert(1)</script>")
    assert "<script>alert" not in wrong.html
    assert "The file is wrong" in wrong.text


def test_a_preview_needs_the_token(store: TaskStore, file: Path) -> None:
    """Other sites can't post the form."""
    assert Visitor(store, queue_yaml=file).ask("POST", "/queue-yaml", {"text": TEXT}).status == 403
