"""The services of a server, and what each is told to be one of them.

services = make_services(config, listeners)
tickets = tickets_of(services, secret_key)
process_configs(config, platform, tickets, listeners, delivery_token=token)     # of those whose apps run here
external_environs(platform, tickets)                                            # of those whose apps run elsewhere
"""

from __future__ import annotations

import logging
import secrets
import socket
from collections.abc import Iterable, Mapping, Sequence

from deferred_middleware.server.apps.environ import Platform, app_environ, external_environ
from deferred_middleware.server.apps.spawn import AppProcessConfig
from deferred_middleware.server.config.secretkey import SECRET_KEYS_VARIABLE, SecretKey
from deferred_middleware.server.config.serveconfig import ServeConfig
from deferred_middleware.server.config.services import Service, name_and_version
from deferred_middleware.server.listeners import address

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


def tickets_of(services: Sequence[Service], secret_key: SecretKey) -> dict[str, Service]:
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
