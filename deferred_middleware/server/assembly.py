"""Makes the objects of a local server and connects them; the supervisor runs them.

    parts = assemble(config, stack, on_event=events.put)

The listening sockets are among them. They belong to the queue process and stay open as long as it runs, so requests
that arrive while an app process is restarted wait in the backlog.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deferred_middleware.errors import ServerError
from deferred_middleware.server.admin.change_log import CHANGES_FILE, ChangeLog
from deferred_middleware.server.admin.guard import Guard, admin_names
from deferred_middleware.server.admin.json_api import JsonApi
from deferred_middleware.server.admin.operations import Operations
from deferred_middleware.server.admin.pages.all_pages import make_site
from deferred_middleware.server.admin.server_file import AddressFile, RunningServer, about, server_file
from deferred_middleware.server.admin.task_lines import AttemptReports, DeadLetterLog, TaskLines
from deferred_middleware.server.admin.web.live import LiveUpdates
from deferred_middleware.server.admin.web.tools import PageTools
from deferred_middleware.server.admin.web.visitors import Visitors
from deferred_middleware.server.api.connections import ApiConnections
from deferred_middleware.server.api.rpc import RpcApplication
from deferred_middleware.server.api.stubs import make_stub_map
from deferred_middleware.server.api.taskqueue import TaskQueueService
from deferred_middleware.server.apps.environ import Platform, app_environ, base_environ, external_environ
from deferred_middleware.server.apps.process import ProcessEvent
from deferred_middleware.server.apps.processes import AppProcesses
from deferred_middleware.server.apps.spawn import AppProcessConfig
from deferred_middleware.server.cloud_tasks.names import Home, location_of
from deferred_middleware.server.cloud_tasks.service import CloudTasksConfig, CloudTasksService
from deferred_middleware.server.config.data_dir import SECRET_KEYS_VARIABLE, SigningKeyFile, check_project
from deferred_middleware.server.config.queue_yaml import QueueYamlWatcher, find_queue_yaml
from deferred_middleware.server.config.queues import QueueRegistry
from deferred_middleware.server.config.served import DEFAULT_PROJECT, DEFAULT_SERVICE, ServeConfig
from deferred_middleware.server.config.services import Service, ServiceDirectory, name_and_version
from deferred_middleware.server.config.virtual_clock import VirtualClock
from deferred_middleware.server.delivery.task_request import TaskRequests
from deferred_middleware.server.delivery.url_attempt import UrlDeliverer
from deferred_middleware.server.delivery.vouching import Voucher
from deferred_middleware.server.dispatch.scheduler import Scheduler
from deferred_middleware.server.listeners import address_of, host_and_port, open_listeners, url_of
from deferred_middleware.server.reporting import make_reports
from deferred_middleware.server.standing import headers_in_queues, server_standing
from deferred_middleware.server.store.records import DAY_SECONDS, Retention
from deferred_middleware.server.store.store import TaskStore

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

STORE_FILE = "tasks.sqlite"
"""Name of the store's file in the data directory."""

# The settings that need no prefix.
_SETTINGS = frozenset({"DEFAULT_QUEUES", "BACKGROUND_MODULE", "WARMUP_MODULE"})

logger: Final = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ServerParts:
    """The objects of a server, none of them started yet.

    ``admin_app`` answers on ``admin_listener``; ``live`` makes its endless answers. ``environs`` are what the apps that
    run elsewhere need, by service. ``ready_file`` and ``server_json`` are to be written when all services answer.
    """

    scheduler: Scheduler
    processes: AppProcesses
    admin_app: WSGIApplication
    admin_listener: socket.socket
    cloud_tasks: CloudTasksService
    live: LiveUpdates
    environs: Mapping[str, Mapping[str, str]]
    running: RunningServer
    ready_file: AddressFile
    server_json: AddressFile


def assemble(
    config: ServeConfig,
    stack: contextlib.ExitStack,
    *,
    on_event: Callable[[ProcessEvent], None],
    on_store_failure: Callable[[ServerError], object],
) -> ServerParts:
    """Make the objects of the server that ``config`` describes; ``stack`` closes those that have to be closed.

    ``on_event`` is called with the events of the app processes, and ``on_store_failure`` when the store can't write any
    more. Raises :class:`ServerError` when something can't be
    had, such as a port.
    """
    project = os.environ.get("GOOGLE_CLOUD_PROJECT") or DEFAULT_PROJECT
    home = None if config.emulate else Home(project=project, location=location_of(os.environ))
    if home is not None:
        check_project(config.data_dir, project)
    secret_key = _secret_key(config)
    queues, queue_yaml = (QueueRegistry(), None) if config.emulate else _queues(config, stack)
    clock = VirtualClock()
    store = _store(config, stack, clock, on_store_failure)
    ready_file = stack.enter_context(AddressFile(config.ready_file, option="--ready-file"))
    server_json = stack.enter_context(server_file(config.data_dir))

    listeners = open_listeners(config, stack)
    services = _services(config, listeners.services)
    # The first service of the directory is the default one, wherever it stands on the command line.
    directory = ServiceDirectory(
        sorted(services, key=lambda service: service.name != DEFAULT_SERVICE), needs_none=config.emulate
    )
    tickets = _tickets(services, secret_key)
    # For the requests of cron jobs, which go over HTTP.
    delivery_token = secrets.token_urlsafe(32)
    platform = Platform(
        project=project,
        app_id=f"dev~{project}",
        default_hostname=directory.default_hostname,
        api_address=address_of(listeners.admin),
        cloud_tasks=host_and_port(listeners.cloud_tasks),
        location="" if home is None else home.location,
        inherited=base_environ(os.environ, secret_key=secret_key.text),
    )

    requests = TaskRequests()
    url_deliverer = UrlDeliverer()
    scheduler = Scheduler(
        store,
        directory,
        requests,
        queues=queues,
        clock=clock.time,
        monotonic=clock.monotonic,
        real_seconds=clock.real_seconds,
        url_deliverer=url_deliverer,
        reports=_attempt_reports(config, services, queues, stack),
    )
    cloud_tasks = CloudTasksService(
        CloudTasksConfig(
            home=home,
            data_dir=config.data_dir,
            issuer=config.oidc_issuer or url_of(listeners.cloud_tasks),
            allowed_hosts=config.allowed_hosts,
            for_tests=config.emulate,
            queues=config.queues,
        ),
        listeners.cloud_tasks,
        store,
        queues,
        directory,
        scheduler.wake,
        clock,
    )
    url_deliverer.authorize = cloud_tasks.signer.authorization
    url_deliverer.rewrite = cloud_tasks.rewrite
    cloud_tasks.load()
    stub_map = None
    if not config.emulate:
        stub_map = make_stub_map(
            app_id=platform.app_id,
            data_dir=config.data_dir,
            directory=directory,
            taskqueue_stub=TaskQueueService(store, scheduler.wake, directory=directory, queues=queues),
            callers=tickets,
            on_failure=on_store_failure,
        )
        stack.callback(stub_map.GetStub("datastore_v3").close)
    running = RunningServer(
        pid=os.getpid(),
        since=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        admin=url_of(listeners.admin),
        cloud_tasks=host_and_port(listeners.cloud_tasks),
        token=secrets.token_urlsafe(32),
        services={service.id: service.url for service in services},
    )
    operations = Operations(
        store,
        queues=lambda: queues,
        wake_scheduler=scheduler.wake,
        about=about(running, config.data_dir),
        # The processes are made last, because they need what answers their API calls.
        standing=server_standing(scheduler, list(directory), process_of=lambda service: processes.status(service)),
        moved=headers_in_queues(scheduler, requests),
        change_log=ChangeLog(config.data_dir / CHANGES_FILE),
        read_only=config.read_only,
    )
    reports = make_reports(
        config,
        operations,
        queues=queues,
        queue_yaml=queue_yaml,
        directory=directory,
        delivery_token=delivery_token,
        stub_map=stub_map,
        app_id=platform.app_id,
    )
    live = LiveUpdates(store.queries.version)
    site = make_site(
        PageTools(operations=operations, live=live, reports=reports, editor=config.editor),
        Visitors(running.token),
        form_token=secret_key.derive("forms of the pages"),
    )
    admin_pages: WSGIApplication = JsonApi(
        operations, reports, token=running.token, controls=cloud_tasks.controls, pages=site
    )
    configs: list[AppProcessConfig] = []
    if stub_map is not None:
        rpc = RpcApplication(stub_map, tickets, pages=admin_pages)
        admin_pages = rpc
        configs = _process_configs(
            config,
            platform,
            tickets,
            listeners.services,
            delivery_token=delivery_token,
            api_connections=ApiConnections(rpc.answer),
        )
    processes = AppProcesses(configs, on_event=on_event, deliveries=scheduler.worker_of)
    environs = {
        service.id: external_environ(platform, service, api_ticket=ticket)
        for ticket, service in tickets.items()
        if service.external and not config.emulate
    }
    all_environs = {**{one.service: one.environ for one in configs}, **environs}
    warn_of_different_keys(all_environs.values())
    requests.voucher = Voucher(all_environs, application=project)

    return ServerParts(
        scheduler=scheduler,
        processes=processes,
        admin_app=Guard(admin_pages, names=admin_names(config.admin_host, config.allowed_hosts)),
        admin_listener=listeners.admin,
        cloud_tasks=cloud_tasks,
        live=live,
        environs=environs,
        running=dataclasses.replace(
            running, environ={} if config.emulate else _command_environ(platform, tickets, configs)
        ),
        ready_file=ready_file,
        server_json=server_json,
    )


def _secret_key(config: ServeConfig) -> SigningKeyFile:
    """Return the key that tasks are signed with, from its file in the data directory."""
    secret_key = SigningKeyFile(config.data_dir)
    for note in secret_key.notes:
        logger.warning("%s", note)
    return secret_key


def _queues(config: ServeConfig, stack: contextlib.ExitStack) -> tuple[QueueRegistry, Path]:
    """Return the queues of queue.yaml, which follow its changes, and its path."""
    queues = QueueRegistry()
    path = config.queue_yaml
    if path is None:
        files = [one.app_yaml for one in config.served.apps if one.app_yaml and one.service == DEFAULT_SERVICE]
        path = find_queue_yaml([*(file.absolute().parent for file in files), Path.cwd()])
    stack.enter_context(QueueYamlWatcher(path, queues, required=config.queue_yaml is not None))
    return queues, path


def _store(
    config: ServeConfig,
    stack: contextlib.ExitStack,
    clock: VirtualClock,
    on_failure: Callable[[ServerError], object],
) -> TaskStore:
    """Open the task store."""
    retention = Retention(
        tombstone_seconds=config.tombstone_days * DAY_SECONDS,
        succeeded_seconds=config.history_days * DAY_SECONDS,
        succeeded_tasks=config.history_tasks,
    )
    store = TaskStore(
        config.data_dir / STORE_FILE,
        clock=clock.time,
        elapsed=clock.elapsed,
        retention=retention,
        on_failure=on_failure,
    )
    stack.callback(store.close)
    return store


def _services(config: ServeConfig, listeners: Sequence[socket.socket]) -> list[Service]:
    """Return the services: those whose apps run here, which have ``listeners``, and then the others."""
    # Two threads stay free for people, and for requests that a task makes to its own service.
    concurrency = max(1, config.threads - 2)
    here = [
        (app.service, *address_of(listener), False) for app, listener in zip(config.served.apps, listeners, strict=True)
    ]
    elsewhere = [(external.service, external.host, external.port, True) for external in config.served.external]
    services = []
    for service_id, host, port, external in [*here, *elsewhere]:
        name, version = name_and_version(service_id)
        services.append(
            Service(name=name, version=version, host=host, port=port, concurrency=concurrency, external=external)
        )
    return services


def _attempt_reports(
    config: ServeConfig, services: Sequence[Service], queues: QueueRegistry, stack: contextlib.ExitStack
) -> AttemptReports:
    """Return who is told of attempts that ended; ``stack`` ends its thread, after that of the scheduler."""
    if not config.task_lines:
        return DeadLetterLog(config.data_dir)
    lines = TaskLines(services=[service.id for service in services], queues=queues, data_dir=config.data_dir)
    lines.start()
    stack.callback(lines.stop)
    return lines


def _tickets(services: Sequence[Service], secret_key: SigningKeyFile) -> dict[str, Service]:
    """Return the API tickets: one for each service, which tell the APIs who calls.

    A service whose app runs elsewhere gets the same ticket at each start, because a person has to give it to the app.
    """
    return {
        secret_key.derive(f"API ticket of service {service.id}")
        if service.external
        else secrets.token_urlsafe(32): service
        for service in services
    }


def _process_configs(
    config: ServeConfig,
    platform: Platform,
    tickets: Mapping[str, Service],
    listeners: Sequence[socket.socket],
    *,
    delivery_token: str,
    api_connections: ApiConnections,
) -> list[AppProcessConfig]:
    """Return how to run the apps that run here; ``listeners`` are theirs."""
    configs = []
    # Python notices stale compiled code by its time in seconds and its size, which is too coarse for quick edits.
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
                concurrency=service.concurrency,
                listener=listener,
                environ={**uncompiled, **environ},
                delivery_token=delivery_token,
                api_ticket=ticket,
                default_hostname=platform.default_hostname,
                task_lines=config.task_lines,
                handlers=served.handlers,
                start_timeout_seconds=config.start_timeout_seconds,
                api_connections=api_connections,
            )
        )
    return configs


def _command_environ(
    platform: Platform, tickets: Mapping[str, Service], configs: Sequence[AppProcessConfig]
) -> dict[str, str]:
    """Return the environment in which a command can enqueue as the default service, with that service's settings."""
    ticket, service = next(
        ((ticket, service) for ticket, service in tickets.items() if service.name == DEFAULT_SERVICE),
        next(iter(tickets.items())),
    )
    own = next((one.environ for one in configs if one.service == service.id), {})
    settings = {name: value for name, value in own.items() if name.startswith("DEFERRED_") or name in _SETTINGS}
    return {**external_environ(platform, service, api_ticket=ticket), **settings}


def warn_of_different_keys(environs: Iterable[Mapping[str, str]]) -> None:
    """Warn if not all services, whose environments these are, sign tasks with the same key."""
    if len({environ[SECRET_KEYS_VARIABLE].partition(",")[0].strip() for environ in environs}) > 1:
        logger.warning(
            "Not all services have the same %s: a service refuses the tasks of another one, unless it has the other "
            "one's key too.",
            SECRET_KEYS_VARIABLE,
        )
