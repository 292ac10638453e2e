"""Routes: which function answers a request."""

from __future__ import annotations

import pytest

from deferred_middleware.server.admin.operation_errors import OperationError
from deferred_middleware.server.admin.web.requests import Sent
from deferred_middleware.server.admin.web.routes import Route, find_route

ROUTES = [
    Route("GET", "/queues/{queue}", lambda: Sent(content_type="text/plain")),
    Route("POST", "/queues/{queue}/pause", lambda: Sent(content_type="text/plain")),
    Route("GET", "/a.b", lambda: Sent(content_type="text/plain")),
]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_parts_of_a_path_are_returned(method: str) -> None:
    """Each part in braces is returned by its name; HEAD is answered like GET."""
    assert find_route(ROUTES, method, "/queues/mail-1")[1] == {"queue": "mail-1"}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/queues/", 404),
        ("GET", "/queues/a/b", 404),
        ("GET", "/axb", 404),
        ("GET", "/queues/a\n", 200),
        ("GET", "/queues/mail/pause", 405),
        ("POST", "/queues/mail", 405),
        ("DELETE", "/queues/mail", 405),
    ],
)
def test_what_does_not_match_is_an_error(method: str, path: str, status: int) -> None:
    """An unknown path is 404, a known one with another method 405; a dot is a dot."""
    if status == 200:
        find_route(ROUTES, method, path)
        return
    with pytest.raises(OperationError) as caught:
        find_route(ROUTES, method, path)

    assert caught.value.status == status
