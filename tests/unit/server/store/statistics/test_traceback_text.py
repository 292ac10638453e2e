"""Why an attempt failed, read from its response."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deferred_middleware.server.store.statistics.traceback_text import FailureSite, failure_site, frames_in, function_in

THIS_FILE = __file__


def _plain() -> None:
    raise ValueError("two\nlines")


def _in_a_library() -> None:
    json.loads("{")


def _chained() -> None:
    try:
        _plain()
    except ValueError:
        _in_a_library()


def _caused() -> None:
    try:
        _in_a_library()
    except ValueError as error:
        raise RuntimeError("the file is bad") from error


def _with_a_traceback_as_its_message() -> None:
    raise RuntimeError(f"the worker said:\n{_TRACEBACK}")


def _recursive() -> None:
    _recursive()


def _without_a_message() -> None:
    raise AssertionError


class _Custom(Exception):
    class Inner(Exception):
        pass


def _nested() -> None:
    raise _Custom.Inner("x")


_TRACEBACK = 'Traceback (most recent call last):\n  File "/w.py", line 1, in work\nOSError: no\n'


def _site(text: str, **fields: object) -> FailureSite:
    return failure_site(
        **{"status": 500, "reason": "status 500", "url": "/_cb/deferred/mail/send", "response": text.encode(), **fields}  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("function", "exception", "message"),
    [
        (_plain, "ValueError", "two"),
        (_in_a_library, "json.decoder.JSONDecodeError", "Expecting property name enclosed in double quotes: "),
        (_caused, "RuntimeError", "the file is bad"),
        (_with_a_traceback_as_its_message, "RuntimeError", "the worker said:"),
        (_recursive, "RecursionError", "maximum recursion depth exceeded"),
        (_without_a_message, "AssertionError", ""),
        (_nested, f"{__name__}._Custom.Inner", "x"),
    ],
)
def test_the_users_innermost_frame(function: Callable[[], None], exception: str, message: str) -> None:
    """The frame is the innermost one that is in no library, of the exception that was raised last."""
    with pytest.raises(BaseException) as raised:  # noqa: PT011 - the table has the types
        function()
    site = _site("".join(traceback.format_exception(raised.value)))
    assert site.exception == exception
    assert site.message.startswith(message)
    assert (site.file, site.function) == (THIS_FILE, function.__name__)
    assert site.source
    assert site.line > 0


def test_the_last_of_chained_exceptions_counts() -> None:
    """An exception that was raised while another was handled is the one that ended the attempt."""
    with pytest.raises(ValueError, match="Expecting") as raised:
        _chained()
    site = _site("".join(traceback.format_exception(raised.value)))
    assert (site.exception, site.function) == ("json.decoder.JSONDecodeError", "_in_a_library")


def test_groups_of_exceptions() -> None:
    """Of a group of exceptions, the group itself and its own frame are shown."""
    text = (
        "  + Exception Group Traceback (most recent call last):\n"
        '  |   File "/app/m.py", line 3, in send\n  |     raise ExceptionGroup("all", errors)\n'
        "  | ExceptionGroup: all (2 sub-exceptions)\n"
        "  +-+---------------- 1 ----------------\n    | Traceback (most recent call last):\n"
        '    |   File "/app/n.py", line 1, in other\n    | ValueError: x\n    +---------------- 2 ----------------\n'
        "    | KeyError: 'y'\n    +------------------------------------\n"
    )
    site = _site(text)
    assert (site.exception, site.message) == ("ExceptionGroup", "all (2 sub-exceptions)")
    assert (site.file, site.line, site.function) == ("/app/m.py", 3, "send")


@pytest.mark.parametrize(
    ("file", "is_users"),
    [
        ("/home/me/app/mail.py", True),
        ("mail.py", True),
        ("/home/me/app/.venv/lib/python3.12/site-packages/flask/app.py", False),
        ("/usr/lib/python3/dist-packages/yaml/__init__.py", False),
        ("/usr/lib64/python3.11/json/decoder.py", False),
        ("<frozen importlib._bootstrap>", False),
        ("/home/me/lib/pythonic/mail.py", True),
    ],
)
def test_which_frames_are_the_users(file: str, is_users: bool) -> None:
    """Libraries are told from the app's code by their folders."""
    (frame,) = frames_in(f'  File "{file}", line 5, in f\n    x()\n')
    assert frame.is_users is is_users
    assert (frame.line, frame.function, frame.source) == (5, "f", "x()")


def test_without_a_frame_of_the_user_the_innermost_one_counts() -> None:
    """An error deep in a library that no frame of the app leads to has the library's place."""
    text = (
        "Traceback (most recent call last):\n"
        '  File "/usr/lib/python3.11/a.py", line 1, in a\n  File "/usr/lib/python3.11/b.py", line 2, in b\nOSError\n'
    )
    assert _site(text).function == "b"


@pytest.mark.parametrize(
    ("fields", "exception", "message"),
    [
        ({"status": 404, "reason": "status 404"}, "status 404", ""),
        ({"status": 503, "reason": "the service said so"}, "status 503", "the service said so"),
        ({"status": 200, "reason": "permanent failure"}, "permanent failure", "permanent failure"),
        ({"status": None, "reason": None}, "no response", ""),
        (
            {"status": None, "reason": "process 4242 was killed after 1.5 s"},
            "process … was killed after … s",
            "process 4242 was killed after 1.5 s",
        ),
    ],
)
def test_without_a_traceback(fields: dict[str, object], exception: str, message: str) -> None:
    """Other failures are told apart by the status or what happened, and by the function."""
    site = _site("<html>oops</html>", **fields)
    assert (site.exception, site.message, site.file, site.function) == (exception, message, "", "mail/send")


def test_a_long_traceback_whose_middle_is_left_out() -> None:
    """The end of a traceback that was shortened is enough."""
    text = (
        'Traceback (most recent call last):\n  File "/app/a.py", line 1, in a\n    b()\n  […]\n'
        'ile "/app/c.py", line 3, in c\n    d()\n'
        '  File "/app/d.py", line 4, in d\n    raise OSError("no")\nOSError: no\n'
    )
    site = _site(text)
    assert (site.exception, site.function) == ("OSError", "d")


@given(st.binary(max_size=300), st.text(max_size=50))
def test_any_response_is_read(response: bytes, url: str) -> None:
    """Whatever a response holds, the result has short texts that the store can keep."""
    for text in (response, b"Traceback (most recent call last):\n" + response):
        site = failure_site(status=500, reason=None, response=text, url="/" + url.replace("\ud800", ""))
        assert all(len(part) <= 300 for part in (site.exception, site.message, site.file, site.function, site.source))
        assert site.key


@pytest.mark.parametrize(
    ("url", "function"),
    [
        ("/_cb/deferred/mail/send", "mail/send"),
        ("/_cb/deferred/mail/M%C3%BCll.send", "mail/Müll.send"),
        ("/user/17/mail?x=1", "/user/…/mail"),
        ("/" + "x" * 500, "/" + "x" * 298 + "…"),
    ],
)
def test_functions(url: str, function: str) -> None:
    """A function is named as in lists; an own URL is a path without numbers."""
    assert function_in(url) == function
