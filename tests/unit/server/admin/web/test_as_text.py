"""A task as text to use elsewhere: each text does what it says."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from deferred_middleware.server.admin.web.as_text import copyables


def task(args: list[str], kwargs: dict[str, str] | None = None, **changes: Any) -> dict[str, Any]:
    """Return a task as the API shows it."""
    kwargs = kwargs or {}
    arguments = ", ".join([*args, *(f"{name}={value}" for name, value in kwargs.items())])
    payload = {"kind": "call", "problem": None, "args": args, "kwargs": kwargs, "text": f"shop.charge({arguments})"}
    return {"id": 7, "queue": "mail", "state": "failed", "function": "shop/charge", "payload": payload, **changes}


def texts(shown: dict[str, Any]) -> dict[str, str]:
    """Return the texts by their key."""
    about = {"data_dir": "/tmp/my data", "admin": "http://127.0.0.1:8000"}
    return {one.key: one.text for one in copyables(shown, about)}


def test_the_command_enqueues_the_call_again() -> None:
    """The words of the command are the arguments, whatever is in them."""
    words = shlex.split(texts(task(["1", "'it''s; rm -rf'"], {"note": "'a b'"}))["command"])

    assert words == [
        *("deferred-middleware", "call", "--data-dir", "/tmp/my data", "--queue", "mail", "shop:charge"),
        *("1", "'it''s; rm -rf'", "note='a b'"),
    ]


@pytest.mark.parametrize("argument", ["datetime.date(2026, 1, 1)", "<a file>", "'long'… (5,000 characters)"])
def test_a_call_that_is_no_literal_has_another_command(argument: str) -> None:
    """The command shows the task if it can't make the call."""
    assert texts(task([argument]))["command"] == "deferred-middleware show 7 --data-dir '/tmp/my data'"


def test_the_test_runs() -> None:
    """The test imports what it needs and makes the call."""
    text = texts(task(["datetime.date(2026, 1, 1)", "decimal.Decimal('1')"]))["pytest"]

    assert text.startswith("import datetime\nimport decimal\nimport shop\n\n\ndef test_charge():\n")
    compile(text, "test", "exec")
    assert "    shop.charge(datetime.date(2026, 1, 1), decimal.Decimal('1'))\n" in text


@pytest.mark.parametrize("argument", ["<a file>", "'x'… (5,000 characters)", "…"])
def test_a_call_that_python_can_not_read_has_no_test(argument: str) -> None:
    """No test is offered that would not run."""
    assert texts(task([argument]))["pytest"] == ""


@pytest.mark.parametrize(("state", "action"), [("failed", "retry"), ("ready", "run")])
def test_the_request_has_no_secret(state: str, action: str) -> None:
    """The request reads the token from its file when it runs."""
    text = texts(task([], state=state))["curl"]

    assert f"http://127.0.0.1:8000/api/v1/tasks/7/{action}" in text
    assert "'/tmp/my data/server.json'" in text
