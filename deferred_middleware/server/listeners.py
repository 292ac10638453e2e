"""The listening sockets of the server. They belong to the queue process, and stay open as long as it runs."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from deferred_middleware.errors import ServerError
from deferred_middleware.server.config.served import ServeConfig

_BACKLOG = 1024
_MAX_PORT = 65535


@dataclass(frozen=True, kw_only=True)
class Listeners:
    """The sockets of the admin server, of the Cloud Tasks API, and of each app that runs here, in their order."""

    admin: socket.socket
    cloud_tasks: socket.socket
    services: Sequence[socket.socket]


def open_listeners(config: ServeConfig, stack: contextlib.ExitStack) -> Listeners:
    """Return the listening sockets, which ``stack`` closes.

    The services get ``--port`` and the ports that follow it; 0 means free ones. In an emulator, ``--port`` is that of
    the Cloud Tasks API. Raises :class:`ServerError` when a port can't be had.
    """
    services = [served.service for served in config.served.apps]
    ports = [config.port + index if config.port else 0 for index in range(len(services))]
    if ports and ports[-1] > _MAX_PORT:
        raise ServerError(
            f"--port {config.port}: the last service would get port {ports[-1]}, above {_MAX_PORT}; choose a lower one."
        )
    cloud_port = config.port if config.emulate else config.cloud_tasks_port
    cloud_option = "--port" if config.emulate else "--cloud-tasks-port"
    for option, given in (("--admin-port", config.admin_port), ("--cloud-tasks-port", config.cloud_tasks_port)):
        if given and given in ports:
            taken = services[ports.index(given)]
            raise ServerError(f"{option} {given} is the port of service {taken!r}; choose another, or {option} 0.")
    if cloud_port and cloud_port == config.admin_port:
        raise ServerError(
            f"{cloud_option} {cloud_port} is the port of the admin server; choose another, or {cloud_option} 0."
        )
    admin = _listener(
        stack,
        host=config.admin_host,
        port=config.admin_port,
        purpose="the admin server",
        host_option="--admin-host",
        port_option="--admin-port",
    )
    cloud_tasks = _listener(
        stack,
        host=config.host if config.emulate else config.admin_host,
        port=cloud_port,
        purpose="the Cloud Tasks API",
        host_option="--host" if config.emulate else "--admin-host",
        port_option=cloud_option,
    )
    listeners = []
    for service, port in zip(services, ports, strict=True):
        listeners.append(
            _listener(
                stack,
                host=config.host,
                port=port,
                purpose=f"service {service!r}",
                host_option="--host",
                port_option="--port",
            )
        )
    return Listeners(admin=admin, cloud_tasks=cloud_tasks, services=listeners)


def _listener(
    stack: contextlib.ExitStack, *, host: str, port: int, purpose: str, host_option: str, port_option: str
) -> socket.socket:
    """Return a listening socket for ``purpose``, which ``stack`` closes; errors name the options."""
    try:
        resolved = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)[0][4]
    except socket.gaierror as error:
        raise ServerError(
            f"{host_option} {host} has no IPv4 address ({error.strerror}); give one, such as 127.0.0.1."
        ) from error
    listener = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    # Otherwise the port can't be bound for a minute after its last connection.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(resolved)
        listener.listen(_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            message = (
                f"Port {port}, meant for {purpose}, is in use; "
                f"stop what uses it, or choose another with {port_option} (0: a free one)."
            )
        elif error.errno == errno.EADDRNOTAVAIL:
            message = f"{host_option} {host} is not an address of this machine; 127.0.0.1 always is."
        else:
            message = (
                f"Port {port}, meant for {purpose}, can't be had: {error.strerror}; choose another with {port_option}."
            )
        raise ServerError(message) from error
    return listener


def address_of(listener: socket.socket) -> tuple[str, int]:
    """Return where ``listener`` can be reached from this machine."""
    host, port = listener.getsockname()
    return ("127.0.0.1" if host == "0.0.0.0" else host), port


def url_of(listener: socket.socket) -> str:
    """Return the URL at which ``listener`` can be reached from this machine."""
    host, port = address_of(listener)
    return f"http://{host}:{port}"


def host_and_port(listener: socket.socket) -> str:
    """Return where ``listener`` can be reached from this machine, as gRPC takes it."""
    host, port = address_of(listener)
    return f"{host}:{port}"
