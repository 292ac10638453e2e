"""The services of the server, and which of them runs a task.

On App Engine, a task's target, ``[instance.][version.]service``, becomes a prefix of the default hostname in the task's
``Host`` header, and the platform routes the task by that header. Here, :class:`ServiceDirectory` does:

    directory = ServiceDirectory([default, background])
    directory.target("local.background.localhost:8080")     # "local.background"
    directory.by_target("local.background")                 # the Service named "background"
    directory.host("local.background")                      # "local.background.localhost:8080"

Frameworks accept ``localhost`` and the names that end in it while an app is developed, as Django's ``ALLOWED_HOSTS``
does with ``DEBUG``. Browsers resolve these names to loopback (https://www.rfc-editor.org/rfc/rfc6761#section-6.3).

If a task's target names no service of this server, the attempt fails with an error and is retried. The task never runs
in another service.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from deferred_middleware.errors import DeferredError
from deferred_middleware.server.store.records import HTTP_TARGET

HTTP_CONCURRENCY = 128
"""How many tasks with complete URLs run at a time."""

LOCAL_VERSION = "local"
"""The version of a service that is given without one."""

_LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")


class UnknownServiceError(DeferredError, LookupError):
    """A task's target is a service or version that this server does not serve.

    ``target`` is the task's target; ``known`` are the services of this server, each as ``version.service``.
    """

    def __init__(self, target: str, known: Sequence[str]) -> None:
        self.target = target
        self.known: tuple[str, ...] = tuple(known)
        super().__init__(
            f"No service answers to {target!r}; served here: {', '.join(self.known) or 'none'}. "
            "Start it with --service, or correct the task's target."
        )


def name_and_version(service_id: str) -> tuple[str, str]:
    """Split a service's ID, such as ``v2.worker``, or ``worker`` for the version :data:`LOCAL_VERSION`."""
    version, _, name = service_id.rpartition(".")
    return name, version or LOCAL_VERSION


@dataclass(frozen=True, kw_only=True)
class Service:
    """One version of a service, and its address.

    ``concurrency`` is how many tasks it may run at a time, at least 1. An ``external`` service runs elsewhere, so the
    server does not send it the secrets that it shares with its own processes.
    """

    name: str
    version: str
    host: str
    port: int
    concurrency: int
    external: bool = False

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError(f"concurrency={self.concurrency!r}: a service must take at least one task")

    @property
    def id(self) -> str:
        """The ID of this version of the service: ``v2.worker``, or ``worker`` for :data:`LOCAL_VERSION`."""
        return self.name if self.version == LOCAL_VERSION else f"{self.version}.{self.name}"

    @functools.cached_property
    def address(self) -> str:
        """``host:port``, as in a URL."""
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL at which the service answers."""
        return f"http://{self.address}"


HTTP_TARGETS = Service(name="http", version=LOCAL_VERSION, host="", port=0, concurrency=HTTP_CONCURRENCY, external=True)
"""Stands for the services of all tasks that have complete URLs."""


class ServiceDirectory:
    """The services of this server. The first one is the default service.

    It does not change, so any thread may use it. Raises :class:`ValueError` if there is no service, unless the server
    ``needs_none``, or if a version of a service is given twice.
    """

    def __init__(self, services: Sequence[Service], *, needs_none: bool = False) -> None:
        if not services and not needs_none:
            raise ValueError("a server needs at least one service")
        self._services = tuple(services)
        self._by_version: dict[tuple[str, str], Service] = {}
        self._by_name: dict[str, Service] = {}
        self._by_address: dict[str, Service] = {}
        for service in self._services:
            key = (service.name.lower(), service.version.lower())
            if key in self._by_version:
                raise ValueError(f"version {service.version!r} of service {service.name!r} is given twice")
            self._by_version[key] = service
            # A target without a version means the service's first version.
            self._by_name.setdefault(key[0], service)
            # Users type "localhost" where the server says "127.0.0.1".
            hosts = _LOOPBACK_HOSTS if service.host in _LOOPBACK_HOSTS else (service.host.lower(),)
            for host in hosts:
                self._by_address.setdefault(f"{host}:{service.port}", service)

        if not services:
            self._default_hostnames: tuple[str, ...] = ("localhost",)
            return
        default = self.default
        names = ("localhost", *_LOOPBACK_HOSTS) if default.host in _LOOPBACK_HOSTS else (default.host.lower(),)
        # An app that has run since before may know the service by another name.
        self._default_hostnames = tuple(f"{host}:{default.port}" for host in names)

    def __iter__(self) -> Iterator[Service]:
        return iter(self._services)

    def __len__(self) -> int:
        return len(self._services)

    @property
    def default(self) -> Service:
        """The service of tasks that have no target."""
        return self._services[0]

    @property
    def default_hostname(self) -> str:
        """``host:port`` of the default service; apps have it as ``DEFAULT_VERSION_HOSTNAME``."""
        return self._default_hostnames[0]

    def by_id(self, service_id: str) -> Service:
        """Return the service with this :attr:`Service.id`. Raises :class:`UnknownServiceError` if there is none."""
        name, version = name_and_version(service_id)
        try:
            return self._by_version[(name.lower(), version.lower())]
        except KeyError:
            raise self._unknown(service_id) from None

    def target(self, host: str | None) -> str | None:
        """Return the target that a ``Host`` header means: ``[instance.][version.]service``.

        It is empty for the default service, and None if the header is missing or names no service of this server. A
        target keeps its meaning when the server starts again with other ports; a header does not.
        """
        if not host:
            return None
        lowered = host.lower()
        found = self._by_address.get(lowered)
        if found is not None and found is self.default:
            return ""
        if found is not None:
            return f"{found.version}.{found.name}"
        for hostname in self._default_hostnames:
            if lowered.endswith(f".{hostname}"):
                return lowered[: -len(hostname) - 1]
        return None

    def host(self, target: str) -> str:
        """Return the ``Host`` header of a task with this target."""
        return f"{target}.{self.default_hostname}" if target else self.default_hostname

    def by_target(self, target: str) -> Service:
        """Return the service of a target.

        A single label is a service or, as with Cloud Tasks, a version of the default service. Raises
        :class:`UnknownServiceError` if this server does not serve the service or version.
        """
        if target == HTTP_TARGET:
            return HTTP_TARGETS
        if not self._services:
            raise self._unknown(target or "default")
        if not target:
            return self.default
        labels = target.lower().split(".")
        found: Service | None = None
        if len(labels) == 1:
            found = self._by_name.get(labels[0]) or self._by_version.get((self.default.name.lower(), labels[0]))
        elif len(labels) <= 3:
            # The first of three labels is an instance; here, a service has only one.
            found = self._by_version.get((labels[-1], labels[-2]))
        if found is None:
            raise self._unknown(target)
        return found

    def _unknown(self, target: str) -> UnknownServiceError:
        return UnknownServiceError(target, [f"{s.version}.{s.name}" for s in self._services])
