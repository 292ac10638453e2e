"""The listening sockets of a local server, and where they can be reached."""

from __future__ import annotations

import contextlib
import errno
import socket

from deferred_middleware.errors import ServerError
from deferred_middleware.server.config.served import ServeConfig

_BACKLOG = 1024
_MAX_PORT = 65535


def make_listeners(config: ServeConfig, stack: contextlib.ExitStack) -> list[socket.socket]:
    """Return the listening sockets: the admin server's, then one for each app that runs here.

    The services get ``--port`` and the ports that follow it; 0 means free ones. Raises :class:`ServerError` when a port
    can't be had.
    """
    services = [served.service for served in config.served.apps]
    ports = [config.port + index if config.port else 0 for index in range(len(services))]
    if ports and ports[-1] > _MAX_PORT:
        raise ServerError(
            f"--port {config.port}: the last service would get port {ports[-1]}, above {_MAX_PORT}; choose a lower one."
        )
    if config.admin_port and config.admin_port in ports:
        taken = services[ports.index(config.admin_port)]
        raise ServerError(
            f"--admin-port {config.admin_port} is the port of service {taken!r}; choose another, or --admin-port 0."
        )
    listeners = [
        _listener(
            stack,
            host=config.admin_host,
            port=config.admin_port,
            purpose="the admin server",
            host_option="--admin-host",
            port_option="--admin-port",
        )
    ]
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
    return listeners


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
