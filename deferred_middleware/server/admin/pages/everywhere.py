"""What every page offers: live updates, the choice of colours, and the list of keys."""

from __future__ import annotations

from deferred_middleware.server.admin.operation_errors import bad
from deferred_middleware.server.admin.web.requests import (
    THEME_COOKIE,
    THEMES,
    Answer,
    PageRequest,
    Redirected,
    Sent,
    Shown,
)
from deferred_middleware.server.admin.web.routes import Route
from deferred_middleware.server.admin.web.tools import PageTools

_YEAR_SECONDS = 365 * 24 * 3600


def stream_changes(tools: PageTools, _request: PageRequest) -> Answer:
    """Send an event whenever something has changed."""
    return Sent(content_type="text/event-stream", stream=tools.live.stream)


def choose_theme(_tools: PageTools, request: PageRequest) -> Answer:
    """Remember the colours that a person has chosen, in the browser."""
    theme = request.field("theme")
    if theme not in THEMES:
        raise bad(f"The colours are {', '.join(THEMES)}.")
    cookie = f"{THEME_COOKIE}={theme}; Max-Age={_YEAR_SECONDS}; Path=/; HttpOnly; SameSite=Strict"
    return Redirected(to=request.back("/"), headers=(("Set-Cookie", cookie),))


def show_keyboard(_tools: PageTools, _request: PageRequest) -> Answer:
    """Show the keys."""
    return Shown(template="keyboard.html")


ROUTES = (
    Route("GET", "/live", stream_changes),
    Route("POST", "/theme", choose_theme),
    Route("GET", "/keyboard", show_keyboard),
)
