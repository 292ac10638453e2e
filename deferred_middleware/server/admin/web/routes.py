"""Which function answers a request for a page.

    ROUTES = (
        Route("GET", "/queues/{queue}", show_queue),
        Route("POST", "/queues/{queue}/pause", pause_queue),
    )

The parts in braces are passed to the function by name. They match anything but a slash.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal

from deferred_middleware.server.admin.operation_errors import OperationError
from deferred_middleware.server.admin.web.requests import Answer

_PART = re.compile(r"\{([a-z_]+)\}")


@dataclass(frozen=True, kw_only=True)
class MenuEntry:
    """A link of the menu that is on every page."""

    label: str
    path: str


class Route:
    """``answer(tools, request, **parts)`` answers the requests for a path."""

    def __init__(self, method: Literal["GET", "POST"], path: str, answer: Callable[..., Answer]) -> None:
        self.method = method
        self.path = path
        self.answer = answer
        parts = _PART.split(path)
        self._pattern = re.compile(
            "".join(f"(?P<{part}>[^/]+)" if index % 2 else re.escape(part) for index, part in enumerate(parts))
        )

    def parts(self, path: str) -> dict[str, str] | None:
        """Return the parts of a path that match; None if the path is another one."""
        found = self._pattern.fullmatch(path)
        return None if found is None else found.groupdict()


def find_route(routes: Sequence[Route], method: str, path: str) -> tuple[Route, dict[str, str]]:
    """Return the route of a request, with the parts of its path. Raises :class:`OperationError` if there is none."""
    method = "GET" if method == "HEAD" else method
    others = []
    for route in routes:
        parts = route.parts(path)
        if parts is None:
            continue
        if route.method == method:
            return route, parts
        others.append(route.method)
    if others:
        raise OperationError(
            HTTPStatus.METHOD_NOT_ALLOWED, "wrong-method", f"Use {' or '.join(sorted(set(others)))} for this address."
        )
    raise OperationError(HTTPStatus.NOT_FOUND, "no-such-page", f"There is no page {path!r}.")
