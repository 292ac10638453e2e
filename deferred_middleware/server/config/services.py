"""Which service of the app runs a task.

On App Engine a task's ``target``, ``[instance.][version.]service``, becomes a prefix of the default
hostname in its ``Host`` header, and the platform's front end routes by that header. Here
:class:`ServiceDirectory` does:

    directory = ServiceDirectory([default, background])
    directory.hostname(background)                         # "local.background.127.0.0.1:8080"
    directory.resolve("local.background.127.0.0.1:8080")   # the Service named "background"

A task whose target names nothing that is served fails, visibly, and is retried. It never runs in
another service than it was sent to.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from deferred_middleware.errors import DeferredError

LOCAL_VERSION = "local"
"""The version of a service for which no other is given."""

_LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")


class UnknownServiceError(DeferredError, LookupError):
    """A task is meant for a service or version that isn't served here.

    ``target`` is what it was addressed to, ``known`` what is served, each as ``version.service``.
    """

    def __init__(self, target: str, known: Sequence[str]) -> None:
        self.target = target
        self.known = tuple(known)
        super().__init__(
            f"No service answers to {target!r}; served here: {', '.join(self.known)}. "
            "Start it with --service, or correct the task's target."
        )


def name_and_version(service_id: str) -> tuple[str, str]:
    """Return a service's name and version, of which its id has both: ``v2.worker``, or ``worker`` for the local one."""
    version, _, name = service_id.rpartition(".")
    return name, version or LOCAL_VERSION


@dataclass(frozen=True, kw_only=True)
class Service:
    """Where one version of a service of the app answers.

    ``concurrency`` is how many tasks it may be given at a time, at least 1. An ``external`` one runs elsewhere, and is
    not to know what is between this server and its own processes.
    """

    name: str
    version: str
    host: str
    port: int
    concurrency: int
    external: bool = False

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError(f"concurrency={self.concurrency!r}: a service takes at least one task")

    @property
    def id(self) -> str:
        """What it is called here, where each version of a service is one of its own: ``v2.worker``, or ``worker``."""
        return self.name if self.version == LOCAL_VERSION else f"{self.version}.{self.name}"

    @functools.cached_property
    def address(self) -> str:
        """``host:port``, as a URL has it."""
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{self.address}"


class ServiceDirectory:
    """The services that are served here; the first is what ``default`` is on App Engine.

    Raises :class:`ValueError` when there is none, or when one version of a service is there twice.
    """

    def __init__(self, services: Sequence[Service]) -> None:
        if not services:
            raise ValueError("a server serves at least one service")
        self._services = tuple(services)
        self._by_version: dict[tuple[str, str], Service] = {}
        self._by_name: dict[str, Service] = {}
        self._by_address: dict[str, Service] = {}
        for service in self._services:
            key = (service.name.lower(), service.version.lower())
            if key in self._by_version:
                raise ValueError(f"version {service.version!r} of service {service.name!r} is there twice")
            self._by_version[key] = service
            # The first version of a service is the one that serves its traffic.
            self._by_name.setdefault(key[0], service)
            # People type "localhost" where the server says "127.0.0.1"; it is the same service.
            hosts = _LOOPBACK_HOSTS if service.host in _LOOPBACK_HOSTS else (service.host.lower(),)
            for host in hosts:
                self._by_address.setdefault(f"{host}:{service.port}", service)

    def __iter__(self) -> Iterator[Service]:
        return iter(self._services)

    def __len__(self) -> int:
        return len(self._services)

    @property
    def default(self) -> Service:
        """The service that gets what has no target."""
        return self._services[0]

    @property
    def default_hostname(self) -> str:
        """``host:port`` of the default service; apps see it as ``DEFAULT_VERSION_HOSTNAME``."""
        return self.default.address

    def hostname(self, service: Service) -> str:
        """Return the ``Host`` header of a task that is targeted at ``service``."""
        return f"{service.version}.{service.name}.{self.default_hostname}"

    def by_id(self, service_id: str) -> Service:
        """Return the service with that :attr:`Service.id`. Raises :class:`UnknownServiceError` when there is none."""
        name, version = name_and_version(service_id)
        try:
            return self._by_version[(name.lower(), version.lower())]
        except KeyError:
            raise self._unknown(service_id) from None

    def target(self, host: str | None) -> str | None:
        """Return what a ``Host`` header says about the target: ``[instance.][version.]service``.

        The empty string is the default service, None a header that says nothing: it is missing, or
        has nothing to do with the services here. Unlike the header, the target still means the same
        after a restart on other ports.
        """
        if not host:
            return None
        lowered = host.lower()
        found = self._by_address.get(lowered)
        if found is self.default:
            return ""
        if found is not None:
            return f"{found.version}.{found.name}"
        suffix = "." + self.default_hostname.lower()
        return lowered[: -len(suffix)] if lowered.endswith(suffix) else None

    def host(self, target: str) -> str:
        """Return the ``Host`` header of a task that has this target."""
        return f"{target}.{self.default_hostname}" if target else self.default_hostname

    def by_target(self, target: str) -> Service:
        """Return the service of a target.

        Raises :class:`UnknownServiceError` when it names a service or version that isn't served. One
        label may be a service or, as on one of the engines, a version of the default service.
        """
        if not target:
            return self.default
        labels = target.lower().split(".")
        found: Service | None = None
        if len(labels) == 1:
            found = self._by_name.get(labels[0]) or self._by_version.get((self.default.name.lower(), labels[0]))
        elif len(labels) <= 3:
            # Of three labels the first is an instance, and a service here has only one.
            found = self._by_version.get((labels[-1], labels[-2]))
        if found is None:
            raise self._unknown(target)
        return found

    def resolve(self, host: str | None) -> Service:
        """Return the service that a request with this ``Host`` header is for.

        No host, the default hostname itself, and a host that has nothing to do with it mean the
        default service; another service's own ``host:port`` means that service. Raises
        :class:`UnknownServiceError` when the header names a service or version that isn't served.
        """
        return self.by_target(self.target(host) or "")

    def _unknown(self, target: str) -> UnknownServiceError:
        return UnknownServiceError(target, [f"{s.version}.{s.name}" for s in self._services])
