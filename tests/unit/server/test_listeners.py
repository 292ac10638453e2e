"""The addresses of listening sockets."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from deferred_middleware.errors import ServerError
from deferred_middleware.server.config.served import ServeConfig, Served, ServedApp
from deferred_middleware.server.listeners import address_of, open_listeners, url_of

APPS = Served(apps=[ServedApp(service="default", app="main:app"), ServedApp(service="worker", app="main:app")])


def test_the_admin_server_and_each_service_have_one(tmp_path: Path) -> None:
    """With port 0, all get free ports; any address is reached by loopback."""
    config = ServeConfig(served=APPS, port=0, admin_port=0, admin_host="0.0.0.0", data_dir=tmp_path)
    with contextlib.ExitStack() as stack:
        listeners = open_listeners(config, stack)
        every = [listeners.admin, listeners.cloud_tasks, *listeners.services]

        assert len({address_of(listener) for listener in every}) == 4
        assert url_of(listeners.admin).startswith("http://127.0.0.1:")


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    """The error names the port, its purpose, and the option."""
    with contextlib.ExitStack() as stack:
        first = open_listeners(ServeConfig(served=APPS, port=0, admin_port=0, data_dir=tmp_path), stack)
        taken = address_of(first.admin)[1]

        with pytest.raises(ServerError, match=f"Port {taken}, meant for the admin server.*--admin-port"):
            open_listeners(ServeConfig(served=APPS, port=0, admin_port=taken, data_dir=tmp_path), stack)


def test_the_port_of_an_emulator_is_that_of_the_cloud_tasks_api(tmp_path: Path) -> None:
    """An emulator has no services; its ``--port`` is where clients of Cloud Tasks connect."""
    with contextlib.ExitStack() as stack:
        first = open_listeners(
            ServeConfig(served=Served(apps=()), emulate=True, port=0, admin_port=0, data_dir=tmp_path), stack
        )
        taken = address_of(first.cloud_tasks)[1]
        again = ServeConfig(served=Served(apps=()), emulate=True, port=taken, admin_port=0, data_dir=tmp_path)

        with pytest.raises(ServerError, match=f"Port {taken}, meant for the Cloud Tasks API.*--port"):
            open_listeners(again, stack)


@pytest.mark.parametrize(
    ("ports", "message"),
    [
        ({"admin_port": 9000}, "--admin-port 9000 is the port of service 'default'"),
        ({"admin_port": 0, "cloud_tasks_port": 9001}, "--cloud-tasks-port 9001 is the port of service 'worker'"),
        ({"admin_port": 9002, "cloud_tasks_port": 9002}, "--cloud-tasks-port 9002 is the port of the admin server"),
    ],
)
def test_a_port_is_given_once(tmp_path: Path, ports: dict[str, int], message: str) -> None:
    """The error names the options of two things with the same port."""
    with contextlib.ExitStack() as stack, pytest.raises(ServerError, match=message):
        open_listeners(ServeConfig(served=APPS, port=9000, data_dir=tmp_path, **ports), stack)  # type: ignore[arg-type]
