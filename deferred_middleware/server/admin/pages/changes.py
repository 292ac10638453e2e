"""The log of changes: who did what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deferred_middleware.server.admin.web.requests import Answer, PageRequest, Shown
from deferred_middleware.server.admin.web.routes import Route
from deferred_middleware.server.admin.web.tools import PageTools
from deferred_middleware.server.admin.web.words import clock, plural, shortened

CHANGES_ON_THE_PAGE = 200

_TASKS = ("deleted", "restored", "refused", "retried", "skipped")
# What the other columns say, or what nobody needs to know.
_KNOWN = ("queue", "task", "failure", "entry", "url", "text", "running", "undo_until_usec")


def show_changes(tools: PageTools, _request: PageRequest) -> Answer:
    """Show the last changes that people made, the newest first."""
    changes = [
        {**change, "result": result_of(change["action"], change["answer"])}
        for change in tools.operations.change_log.newest(CHANGES_ON_THE_PAGE)
    ]
    return Shown(template="changes.html", values={"changes": changes})


def result_of(action: str, answer: Mapping[str, Any]) -> str:
    """Return what a change did, in words."""
    words = []
    for name, value in answer.items():
        if name in _TASKS:
            if value or name not in ("refused", "skipped"):
                words.append(f"{plural(value, 'task')} {name}")
        elif name == "made_due":
            words += [f"{plural(value, 'task')} made due"] if value else []
        elif name == "done":
            words += [] if isinstance(value, str) else [f"{plural(value, 'task')} changed"]
        elif name == "changed":
            words += [] if value else ["it was so already"]
        elif name == "forgotten":
            words.append(f"{plural(value, 'name')} free again")
        elif name == "eta_usec":
            words.append(f"to {clock(value)}")
        elif name == "status":
            words.append("no answer yet" if value is None else f"status {value}")
        elif name == "queue" and action == "move":
            words.append(f"to queue {value}")
        elif name not in _KNOWN:
            words.append(shortened(f"{name.replace('_', ' ')} {value}", 60))
    return ", ".join(words) or "done"


ROUTES = (Route("GET", "/changes", show_changes),)
