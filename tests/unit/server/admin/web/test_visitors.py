"""Who may see the pages: the user who started the server, and those who sign in."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from deferred_middleware.server.admin.web.visitors import Visitors
from tests.support.visiting import RUN_TOKEN, Visitor

OTHER_USER = os.getuid() + 54321


def connected() -> tuple[socket.socket, socket.socket, dict[str, Any]]:
    """Return the two ends of a connection of this process to itself, and the environ of its request."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        served, (host, port) = listener.accept()
        environ = {"REMOTE_ADDR": host, "REMOTE_PORT": str(port), "SERVER_PORT": str(listener.getsockname()[1])}
    return client, served, environ


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="only Linux says whose connection it is")
def test_the_kernel_says_whose_connection_it_is() -> None:
    """A connection of this user is let in; once it is closed, it is nobody's."""
    client, served, environ = connected()
    try:
        assert Visitors(RUN_TOKEN).may_see(environ, "")
        assert not Visitors(RUN_TOKEN).may_see({**environ, "REMOTE_PORT": "1"}, "")
        assert not Visitors(RUN_TOKEN).may_see({**environ, "SERVER_PORT": "1"}, "")
    finally:
        client.close()
        served.close()


def test_another_user_of_the_machine_is_not_let_in(tmp_path: Path) -> None:
    """A connection that another user's process has opened shows nothing, but root's does."""
    line = "   1: 0100007F:{port:04X} 0100007F:1F40 01 00000000:00000000 00:00000000 00000000 {user:>5} 0 4711 1 x\n"
    connections = tmp_path / "tcp"
    connections.write_text(
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        + line.format(port=50000, user=OTHER_USER)
        + line.format(port=50001, user=os.getuid())
        + line.format(port=50002, user=0)
    )
    visitors = Visitors(RUN_TOKEN, connections=connections)

    def may_see(port: int, address: str = "127.0.0.1") -> bool:
        return visitors.may_see({"REMOTE_ADDR": address, "REMOTE_PORT": str(port), "SERVER_PORT": "8000"}, "")

    assert [may_see(port) for port in (50000, 50001, 50002, 50003)] == [False, True, True, False]
    assert not may_see(50001, "192.0.2.1")


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"REMOTE_ADDR": "127.0.0.1"},
        {"REMOTE_ADDR": "127.0.0.1", "REMOTE_PORT": "x", "SERVER_PORT": "80"},
        {"REMOTE_ADDR": "192.0.2.1", "REMOTE_PORT": "50000", "SERVER_PORT": "80"},
        {"REMOTE_ADDR": "::1", "REMOTE_PORT": "50000", "SERVER_PORT": "80"},
    ],
)
def test_who_can_not_be_known_is_not_let_in(environ: dict[str, str]) -> None:
    """A request from elsewhere, or without an address, needs the token."""
    assert not Visitors(RUN_TOKEN).may_see(environ, "")
    assert Visitors(RUN_TOKEN).may_see(environ, Visitors(RUN_TOKEN).session)
    assert not Visitors(RUN_TOKEN).may_see(environ, Visitors("another").session)


def test_a_stranger_signs_in_with_the_token(visitor: Visitor) -> None:
    """Without the session every page is the sign-in page; the token, by form or by link, lets the visitor in."""
    visitor.add(name="a-secret")
    visitor.cookies.clear()
    for method, path in [("GET", "/"), ("GET", "/tasks"), ("GET", "/live"), ("POST", "/queues/default/pause")]:
        page = visitor.ask(method, path, {"form_token": "x"} if method == "POST" else b"")
        assert page.status == 401
        assert "a-secret" not in page.html
    assert visitor.store.operations.paused() == frozenset()

    wrong = visitor.press(visitor.ask("GET", "/"), "Sign in", token="wrong")
    assert wrong.status == 401
    assert "not the token of this run" in wrong.text

    assert "<h1>Overview</h1>" in visitor.press(wrong, "Sign in", token=RUN_TOKEN).html
    visitor.cookies.clear()
    assert visitor.ask("GET", f"/sign-in?token={RUN_TOKEN}").header("Location") == "/"
    assert visitor.get("/").status == 200
