"""The sockets that the local server listens on.

They are bound by the queue process and stay open in it as long as it lives, so that requests which arrive while an app
process is being restarted wait in the backlog.

The services of a server, and what each is told to be one of them.

services = make_services(config, listeners)
tickets = tickets_of(services, secret_key)
process_configs(config, platform, tickets, listeners, delivery_token=token)     # of those whose apps run here
external_environs(platform, tickets)                                            # of those whose apps run elsewhere
"""

from __future__ import annotations

import contextlib
import errno
import logging
import secrets
import socket
from collections.abc import Iterable, Mapping, Sequence

from deferred_middleware.errors import ServerError
from deferred_middleware.server.apps.environ import Platform, app_environ, external_environ
from deferred_middleware.server.apps.spawn import AppProcessConfig
from deferred_middleware.server.config.data_dir import SECRET_KEYS_VARIABLE, SigningKeyFile
from deferred_middleware.server.config.served import ServeConfig
from deferred_middleware.server.config.services import Service, name_and_version

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


_logger = logging.getLogger(__name__)


def make_services(config: ServeConfig, listeners: Sequence[socket.socket]) -> list[Service]:
    """Return the services: those whose apps run here, which have ``listeners``, and then the others."""
    # Two threads stay free for people, and for requests that a task makes to its own service.
    concurrency = max(1, config.threads - 2)
    services = []
    for app, listener in zip(config.served.apps, listeners, strict=True):
        host, port = address(listener)
        name, version = name_and_version(app.service)
        services.append(Service(name=name, version=version, host=host, port=port, concurrency=concurrency))
    for external in config.served.external:
        name, version = name_and_version(external.service)
        services.append(
            Service(
                name=name,
                version=version,
                host=external.host,
                port=external.port,
                concurrency=concurrency,
                external=True,
            )
        )
    return services


def tickets_of(services: Sequence[Service], secret_key: SigningKeyFile) -> dict[str, Service]:
    """Return the API tickets: one for each service, so that the APIs know who asks.

    A service whose app runs elsewhere has the same one at each start, because a person has to give it to the app.
    """
    return {
        secret_key.derive(f"API ticket of service {service.id}")
        if service.external
        else secrets.token_urlsafe(32): service
        for service in services
    }


def process_configs(
    config: ServeConfig,
    platform: Platform,
    tickets: Mapping[str, Service],
    listeners: Sequence[socket.socket],
    *,
    delivery_token: str,
) -> list[AppProcessConfig]:
    """Return how to run the apps that run here; ``listeners`` are theirs."""
    configs = []
    # Compiled code is told from older code by its time in seconds and its size, too coarse for edits in a row.
    uncompiled = {"PYTHONDONTWRITEBYTECODE": "1"} if config.reload else {}
    here = [(ticket, service) for ticket, service in tickets.items() if not service.external]
    for served, (ticket, service), listener in zip(config.served.apps, here, listeners, strict=True):
        environ = app_environ(
            platform, service, api_ticket=ticket, env_variables=served.env_variables, source=served.app_yaml
        )
        configs.append(
            AppProcessConfig(
                app=served.app,
                directory=served.directory,
                service=service.id,
                threads=config.threads,
                listener=listener,
                environ={**uncompiled, **environ},
                delivery_token=delivery_token,
                api_ticket=ticket,
                default_hostname=platform.default_hostname,
                start_timeout_seconds=config.start_timeout_seconds,
            )
        )
    return configs


def external_environs(platform: Platform, tickets: Mapping[str, Service]) -> dict[str, dict[str, str]]:
    """Return what the apps that run elsewhere need in their environments, by their services' ids."""
    return {
        service.id: external_environ(platform, service, api_ticket=ticket)
        for ticket, service in tickets.items()
        if service.external
    }


def warn_of_different_keys(environs: Iterable[Mapping[str, str]]) -> None:
    """Say so when not all services, the environments of which these are, sign tasks with the same key."""
    if len({environ[SECRET_KEYS_VARIABLE].partition(",")[0].strip() for environ in environs}) > 1:
        _logger.warning(
            "Not all services have the same %s: a task that one enqueues for another is refused there, unless that one "
            "has its key, too.",
            SECRET_KEYS_VARIABLE,
        )
