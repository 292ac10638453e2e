"""Tracebacks for people: frames with their lines, and links to an editor."""

from __future__ import annotations

import traceback

import pytest

from deferred_middleware.errors import ServerError
from deferred_middleware.server.admin.web.traceback_view import (
    EDITORS,
    FrameLines,
    editor_link,
    editor_template,
    lines_of,
)


def test_a_frame_has_its_lines() -> None:
    """The lines of code, with Python's marks, belong to their frame; the rest are lines."""
    try:
        int("x")
    except ValueError:
        text = traceback.format_exc()

    header, frame, last = lines_of(text)

    assert header == "Traceback (most recent call last):"
    assert isinstance(frame, FrameLines)
    assert frame.frame.file == __file__
    assert frame.lines[0] == 'int("x")'
    assert last == "ValueError: invalid literal for int() with base 10: 'x'"


def test_any_text_keeps_its_lines() -> None:
    """What is no traceback is shown line by line."""
    assert lines_of("<h1>Oops</h1>\n\n    indented") == ["<h1>Oops</h1>", "", "    indented"]
    assert lines_of("") == []


@pytest.mark.parametrize("name", [name for name in EDITORS if name != "none"])
def test_an_editor_opens_a_file_at_a_line(name: str) -> None:
    """The path is encoded, so it can't add anything to the address."""
    link = editor_link(editor_template(name), "/app/my shop&x=1?.py", 12)

    assert "/app/my%20shop%26x%3D1%3F.py" in link
    assert "12" in link
    assert "{" not in link


@pytest.mark.parametrize("file", ["<string>", "relative.py", "javascript:alert(1)", ""])
def test_what_is_no_file_has_no_link(file: str) -> None:
    """Only absolute paths lead anywhere; without an editor nothing does."""
    assert editor_link(EDITORS["vscode"], file, 1) == ""
    assert editor_link("", "/app/x.py", 1) == ""


def test_another_editor_is_an_address() -> None:
    """An address with the path is taken as it is."""
    assert editor_template("idea://open?file={path}&line={line}") == "idea://open?file={path}&line={line}"


@pytest.mark.parametrize(
    "option", ["vim", "", "vscode://x", "javascript://{path}", "JavaScript://{path}", "file://{path}"]
)
def test_other_editors_are_refused(option: str) -> None:
    """The error lists the names, and an address that runs something is no editor."""
    with pytest.raises(ServerError, match=r"vscode, .*--editor|--editor"):
        editor_template(option)
