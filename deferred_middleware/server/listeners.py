"""The sockets that the local server listens on.

They are bound by the queue process and stay open in it as long as it lives, so that requests which arrive while an app
process is being restarted wait in the backlog.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Sequence

from deferred_middleware.errors import ServerError

_BACKLOG = 1024
_MAX_PORT = 65535


def bind_all(
    services: Sequence[str], *, host: str, port: int, admin_host: str, admin_port: int, stack: contextlib.ExitStack
) -> list[socket.socket]:
    """Return the listening sockets: the admin server's, then one for each of ``services``, all closed by ``stack``.

    The services get ``port`` and the ports that follow it; 0 means free ones. Raises
    :class:`~deferred_middleware.errors.ServerError` when one can't be had.
    """
    ports = [port + index if port else 0 for index in range(len(services))]
    if ports and ports[-1] > _MAX_PORT:
        raise ServerError(
            f"--port {port}: the last service would get port {ports[-1]}, above {_MAX_PORT}; choose a lower one."
        )
    if admin_port and admin_port in ports:
        taken = services[ports.index(admin_port)]
        raise ServerError(
            f"--admin-port {admin_port} is the port of service {taken!r}; choose another, or --admin-port 0."
        )
    listeners = [_bind(admin_host, admin_port, "the admin server", "--admin-host", "--admin-port", stack)]
    for service, service_port in zip(services, ports, strict=True):
        listeners.append(_bind(host, service_port, f"service {service!r}", "--host", "--port", stack))
    return listeners


def _bind(
    host: str, port: int, purpose: str, host_option: str, option: str, stack: contextlib.ExitStack
) -> socket.socket:
    try:
        resolved = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)[0][4]
    except socket.gaierror as error:
        raise ServerError(
            f"{host_option} {host} has no IPv4 address ({error.strerror}); give one, such as 127.0.0.1."
        ) from error
    listener = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    # Without it a port can't be had again for a minute after its last connection.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(resolved)
        listener.listen(_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            message = (
                f"Port {port}, meant for {purpose}, is in use; "
                f"stop what uses it, or choose another with {option} (0: a free one)."
            )
        elif error.errno == errno.EADDRNOTAVAIL:
            message = f"{host_option} {host} is not an address of this machine; 127.0.0.1 always is."
        else:
            message = f"Port {port}, meant for {purpose}, can't be had: {error.strerror}; choose another with {option}."
        raise ServerError(message) from error
    return listener


def address(listener: socket.socket) -> tuple[str, int]:
    """Return where ``listener`` can be reached from this machine."""
    host, port = listener.getsockname()
    return ("127.0.0.1" if host == "0.0.0.0" else host), port


def url(listener: socket.socket) -> str:
    """Return the URL at which ``listener`` can be reached from this machine."""
    host, port = address(listener)
    return f"http://{host}:{port}"
