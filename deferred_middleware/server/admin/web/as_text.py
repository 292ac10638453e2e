"""A task as text that a person can use elsewhere: as a command, as a request of curl, and as a test."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deferred_middleware.server.admin.server_file import DEFAULT_DATA_DIR, data_dir_option

_LITERALS = frozenset({"True", "False", "None"})
_IDENTIFIER = re.compile(r"[^0-9A-Za-z_]+")


@dataclass(frozen=True, kw_only=True)
class Copyable:
    """A text to copy; ``note`` says what to know about it."""

    key: str
    title: str
    text: str
    note: str = ""


def copyables(task: Mapping[str, Any], about: Mapping[str, object]) -> list[Copyable]:
    """Return the texts for a task, given as ``show`` has it."""
    option = data_dir_option(Path(str(about.get("data_dir", DEFAULT_DATA_DIR))))
    return [_command(task, option), _pytest(task), _curl(task, about)]


def _command(task: Mapping[str, Any], option: str) -> Copyable:
    """Return the command that enqueues the same call again, or one that shows the task."""
    payload, function = task["payload"], str(task["function"] or "")
    module, _, name = function.partition("/")
    arguments = [*payload["args"], *(f"{key}={value}" for key, value in payload["kwargs"].items())]
    is_plain = all(_is_literal(value) for value in (*payload["args"], *payload["kwargs"].values()))
    if payload["kind"] != "call" or payload["problem"] or not name or not is_plain:
        return Copyable(
            key="command",
            title="Command",
            text=f"deferred-middleware show {task['id']}{option}",
            note="The call has arguments that a command can't have.",
        )
    words = shlex.join(["--queue", str(task["queue"]), f"{module}:{name}", *arguments])
    text = f"deferred-middleware call{option} {words}"
    return Copyable(key="command", title="Command", text=text, note="Enqueues the same call again.")


def _pytest(task: Mapping[str, Any]) -> Copyable:
    """Return a test that makes the call."""
    payload = task["payload"]
    call = str(payload["text"])
    modules = _modules(call) if payload["kind"] == "call" and not payload["problem"] else None
    function = str(task["function"] or "")
    if modules is None:
        return Copyable(key="pytest", title="pytest", text="", note="The call can't be written as Python.")
    module = function.partition("/")[0]
    imports = sorted({*modules, *([module] if call.startswith(f"{module}.") else [])})
    name = _IDENTIFIER.sub("_", function.rpartition("/")[2]).strip("_").lower() or "task"
    text = "".join(f"import {one}\n" for one in imports)
    text += f'\n\ndef test_{name}():\n    """Task {task["id"]} of queue {task["queue"]} does its work."""\n    {call}\n'
    return Copyable(key="pytest", title="pytest", text=text.lstrip(), note="Makes the call in the test's own process.")


def _curl(task: Mapping[str, Any], about: Mapping[str, object]) -> Copyable:
    """Return the request that runs the task, or tries it again. The token stays out of it."""
    action = "retry" if task["state"] == "failed" else "run"
    file = shlex.quote(f"{about.get('data_dir', '.deferred')}/server.json")
    token = f"$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[\"token\"])' {file})"
    url = f"{about.get('admin', 'http://127.0.0.1:8000')}/api/v1/tasks/{task['id']}/{action}"
    text = f'curl -X POST -H "X-Deferred-Admin-Token: {token}" \\\n    {shlex.quote(url)}'
    return Copyable(key="curl", title="curl", text=text, note=f"Asks this server to {action} the task.")


def _is_literal(text: str) -> bool:
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def _modules(call: str) -> set[str] | None:
    """Return the modules that an expression needs; None if the text is not an expression of Python."""
    try:
        tree = ast.parse(call, mode="eval")
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value is Ellipsis:
            return None
        if isinstance(node, ast.Attribute) and isinstance(node.value, (ast.Name, ast.Attribute)):
            dotted = ast.unparse(node.value)
            # A class is written with a capital letter; what is before it is a module.
            parts = [part for part in dotted.split(".") if part not in _LITERALS]
            cut = next((index for index, part in enumerate(parts) if part[:1].isupper()), len(parts))
            if cut:
                modules.add(".".join(parts[:cut]))
    return {one for one in modules if not any(other.startswith(f"{one}.") for other in modules)}
