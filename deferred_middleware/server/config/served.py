"""What ``deferred-middleware serve`` serves, from its APP arguments and ``--service`` options, and how.

    parse_served(["main:app"], ["default", "background"])       # one app runs as two services
    parse_served(["app.yaml", "worker/app.yaml"], [])           # each file names its service
    parse_served([], ["default=http://127.0.0.1:9000"])         # the app runs elsewhere, such as under gunicorn

The local server starts no process for an app that runs elsewhere. The app uses the server's APIs with an environment
that a person sets (:mod:`deferred_middleware.server.apps.environ`).
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deferred_middleware.errors import ServerError
from deferred_middleware.server.config.handlers import HandlerRule
from deferred_middleware.server.config.services import LOCAL_VERSION
from deferred_middleware.wire.protocol import is_loopback

DEFAULT_SERVICE = "default"
DEFAULT_PROJECT = "local-app"
START_TIMEOUT_SECONDS = 120.0
"""How long the import of an app may take."""

_LOOPBACK = "127.0.0.1"
_HTTP_PORT = 80
_YAML_SUFFIXES = (".yaml", ".yml")
# https://cloud.google.com/appengine/docs/standard/reference/app-yaml#service
_SERVICE = re.compile(r"(?:([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)\.)?([a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)")


@dataclass(frozen=True, kw_only=True)
class ServedApp:
    """A service whose app runs in a process of this server.

    ``service`` is its ID, such as ``v2.default``; ``app`` is ``module:callable``. The process runs in ``directory``, by
    default the current one, and has ``env_variables`` in its environment. ``app_yaml`` is the file that the values come
    from, if any; ``notes`` are sentences about that file for the person at the terminal. ``handlers`` are its handlers,
    if there are static files or logins among them.
    """

    service: str
    app: str
    directory: Path | None = None
    env_variables: Mapping[str, str] = field(default_factory=dict)
    app_yaml: Path | None = None
    notes: tuple[str, ...] = ()
    handlers: tuple[HandlerRule, ...] = ()

    @property
    def description(self) -> str:
        """The app, and the ``app.yaml`` that names it."""
        return self.app if self.app_yaml is None else f"{self.app} ({self.app_yaml})"


@dataclass(frozen=True, kw_only=True)
class ExternalApp:
    """A service whose app runs elsewhere, and its address. An IPv6 ``host`` is in brackets, as in a URL."""

    service: str
    host: str
    port: int

    @property
    def url(self) -> str:
        """The URL at which the app answers."""
        return f"http://{self.host}:{self.port}"

    @property
    def is_remote(self) -> bool:
        """Whether the app runs, or may run, on another machine."""
        return not is_loopback(self.host)


@dataclass(frozen=True, kw_only=True)
class Served:
    """The services: ``apps`` run in processes of this server, ``external`` ones elsewhere."""

    apps: Sequence[ServedApp]
    external: Sequence[ExternalApp] = ()


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What the command line says: the services, their addresses, and the data directory, which is already locked.

    With ``emulate``, the server is an emulator of Cloud Tasks: it runs no app, and ``port`` is that of its API.
    ``queues`` are made at the start. ``oidc_issuer`` is the URL in its tokens.
    """

    served: Served
    host: str = _LOOPBACK
    port: int = 8080
    admin_host: str = _LOOPBACK
    admin_port: int = 8000
    allowed_hosts: Sequence[str] = ()
    data_dir: Path = Path(".deferred")
    threads: int = 8
    tombstone_days: float = 9.0
    history_days: float = 7.0
    history_tasks: int = 10_000
    queue_yaml: Path | None = None
    ready_file: Path | None = None
    reload: bool = False
    reload_include: Sequence[str] = ()
    task_lines: bool = True
    cloud_tasks_port: int = 0
    emulate: bool = False
    oidc_issuer: str | None = None
    queues: Sequence[str] = ()
    read_only: bool = False
    editor: str = ""
    start_timeout_seconds: float = START_TIMEOUT_SECONDS


def parse_served(apps: Sequence[str], services: Sequence[str], *, remote: bool = False) -> Served:
    """Return which service runs which app, in the order of the command line.

    An ``app.yaml`` names its own service. A service given as ``NAME=URL`` has its app elsewhere; the URL may be another
    machine's only if ``remote`` is true. All other services run the ``module:callable``. If there are several of those,
    there must be as many services, in the same order. Raises :class:`ServerError` if the numbers differ, if a service's
    name is not legal, or if a file is wrong.
    """
    services = [option.removeprefix(f"{LOCAL_VERSION}.") for option in services]
    external = [parse_external_app(option) for option in services if "=" in option]
    for one in external:
        if one.is_remote and not remote:
            raise ServerError(
                f"--service {one.service}={one.url}: tasks would leave this machine unencrypted; give a URL of this "
                "machine, such as http://127.0.0.1:9000, or add --remote-services if you want that."
            )
    _check_names([option.partition("=")[0] for option in services])
    served = _apps(apps, [name for name in services if "=" not in name])
    _check_services([*served, *external])
    return Served(apps=served, external=external)


def parse_emulated(services: Sequence[str], *, remote: bool = False) -> Served:
    """Return the services of an emulator, which all run elsewhere.

    Raises :class:`ServerError` as :func:`parse_served` does, and for a service without a URL.
    """
    for option in services:
        if "=" not in option:
            raise ServerError(f"--service {option} needs a URL: --service {option}=http://127.0.0.1:8080.")
    return parse_served([], services, remote=remote) if services else Served(apps=())


def parse_external_app(option: str) -> ExternalApp:
    """Return the service in ``NAME=URL``. Raises :class:`ServerError` for a URL that tasks can't be delivered to."""
    name, _, given = option.partition("=")
    try:
        url = urllib.parse.urlsplit(given)
        host, port = url.hostname or "", url.port or _HTTP_PORT
    except ValueError as error:
        raise ServerError(f"--service {option}: {given} is not a URL ({error}).") from error
    if url.scheme != "http" or not host:
        raise ServerError(f"--service {option}: give a URL such as http://127.0.0.1:9000; got {given!r}.")
    if url.path not in ("", "/") or url.query or url.fragment or url.username is not None:
        raise ServerError(
            f"--service {option}: each task has its own path, so the URL must end after the port; "
            f"give http://{url.netloc.rpartition('@')[2]}."
        )
    return ExternalApp(service=name, host=f"[{host}]" if ":" in host else host, port=port)


def _apps(apps: Sequence[str], services: Sequence[str]) -> list[ServedApp]:
    modules = [app for app in apps if not _is_yaml(app)]
    names = _names(modules, services)
    unpaired = iter(names)
    served: list[ServedApp] = []
    for app in apps:
        if _is_yaml(app):
            served.append(_from_yaml(app))
        else:
            mine = names if len(modules) == 1 else [next(unpaired)]
            served += [ServedApp(service=name, app=app) for name in mine]
    return served


def _names(modules: Sequence[str], services: Sequence[str]) -> list[str]:
    """Return the names of the services that run the apps given as ``module:callable``."""
    for app in modules:
        if not re.fullmatch(r"[^:\s]+:(?:[^:\s]+|[^:\s(]+\(.*\))", app):
            raise ServerError(f"Give APP as MODULE:CALLABLE, such as main:app, or as an app.yaml; got {app!r}.")
    if services and not modules:
        raise ServerError(
            f"--service {services[0]} needs an app given as MODULE:CALLABLE, or a URL, as NAME=URL; "
            "an app.yaml names its own service."
        )
    names = list(services) or ([DEFAULT_SERVICE] if modules else [])
    if len(modules) > 1 and len(modules) != len(names):
        given = f"{len(services)} are" if len(services) > 1 else ("1 is" if services else "none is")
        raise ServerError(f"{len(modules)} apps need as many --service options, in the same order; {given} given.")
    return names


def _check_names(services: Sequence[str]) -> None:
    for name in services:
        if not _SERVICE.fullmatch(name):
            raise ServerError(
                f"--service {name!r} can't be a service's name: use up to 63 lower-case letters, digits and hyphens, "
                "without a hyphen at the beginning or end. The same holds for a version, as in VERSION.NAME."
            )
        if services.count(name) > 1:
            raise ServerError(f"--service {name} is given twice; give each service once.")


def _check_services(served: Sequence[ServedApp | ExternalApp]) -> None:
    if not served:
        raise ServerError("There is nothing to serve; give an APP, such as main:app, or --service NAME=URL.")
    by_service: dict[str, ServedApp | ExternalApp] = {}
    for one in served:
        other = by_service.setdefault(one.service, one)
        if other is not one:
            raise ServerError(
                f"Service {one.service!r} is given twice: {_described(other)} and {_described(one)}; "
                "give one of them another name with 'service:' in app.yaml, or with --service."
            )
    if DEFAULT_SERVICE not in {service.rpartition(".")[2] for service in by_service}:
        raise ServerError(
            f"App Engine needs a service called {DEFAULT_SERVICE!r}; give one of the services this name, "
            f"with --service {DEFAULT_SERVICE}, or with an app.yaml without 'service:'."
        )


def _described(one: ServedApp | ExternalApp) -> str:
    return one.description if isinstance(one, ServedApp) else one.url


def _is_yaml(app: str) -> bool:
    return app.endswith(_YAML_SUFFIXES)


def _from_yaml(app: str) -> ServedApp:
    # Imported here because the SDK's parser takes long to import, and a server without an app.yaml needs none.
    from deferred_middleware.server.config.app_yaml import read_app_yaml

    found = read_app_yaml(Path(app))
    return ServedApp(
        service=found.service,
        app=found.app,
        directory=found.directory,
        env_variables=found.env_variables,
        app_yaml=found.path,
        notes=found.notes,
        handlers=found.handlers,
    )
