"""The addresses of listening sockets."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from deferred_middleware.errors import ServerError
from deferred_middleware.server.config.served import ServeConfig, Served, ServedApp
from deferred_middleware.server.listeners import address_of, make_listeners, url_of

APPS = Served(apps=[ServedApp(service="default", app="main:app"), ServedApp(service="worker", app="main:app")])


def test_the_admin_server_and_each_service_have_one(tmp_path: Path) -> None:
    """With port 0, all get free ports; any address is reached by loopback."""
    config = ServeConfig(served=APPS, port=0, admin_port=0, admin_host="0.0.0.0", data_dir=tmp_path)
    with contextlib.ExitStack() as stack:
        listeners = make_listeners(config, stack)

        assert len({address_of(listener) for listener in listeners}) == 3
        assert url_of(listeners[0]).startswith("http://127.0.0.1:")


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    """The error names the port, its purpose, and the option."""
    with contextlib.ExitStack() as stack:
        (first, *_rest) = make_listeners(ServeConfig(served=APPS, port=0, admin_port=0, data_dir=tmp_path), stack)
        taken = address_of(first)[1]

        with pytest.raises(ServerError, match=f"Port {taken}, meant for the admin server.*--admin-port"):
            make_listeners(ServeConfig(served=APPS, port=0, admin_port=taken, data_dir=tmp_path), stack)
