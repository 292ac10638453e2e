"""Which service a Host header or a target means."""

from __future__ import annotations

import dataclasses

import pytest

from deferred_middleware.errors import DeferredError
from deferred_middleware.server.config.services import (
    HTTP_TARGETS,
    Service,
    ServiceDirectory,
    UnknownServiceError,
    name_and_version,
)
from deferred_middleware.server.store.records import HTTP_TARGET


def _service(name: str, port: int, *, version: str = "local", concurrency: int = 2) -> Service:
    return Service(name=name, version=version, host="127.0.0.1", port=port, concurrency=concurrency)


DEFAULT = _service("default", 8080)
BACKGROUND = _service("background", 8081)
DIRECTORY = ServiceDirectory([DEFAULT, BACKGROUND])


def service_of(host: str | None) -> Service:
    """Return the service of a task that was added with this ``Host`` header."""
    return DIRECTORY.by_target(DIRECTORY.target(host) or "")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (None, DEFAULT),
        ("", DEFAULT),
        ("127.0.0.1:8080", DEFAULT),
        ("localhost:8080", DEFAULT),
        ("www.example.com", DEFAULT),
        ("127.0.0.1:8081", BACKGROUND),
        ("LOCALHOST:8081", BACKGROUND),
        ("background.127.0.0.1:8080", BACKGROUND),
        ("local.background.127.0.0.1:8080", BACKGROUND),
        ("0.local.background.127.0.0.1:8080", BACKGROUND),
        ("local.127.0.0.1:8080", DEFAULT),
        ("local.default.127.0.0.1:8080", DEFAULT),
        ("background.localhost:8080", BACKGROUND),
        ("local.Background.LOCALHOST:8080", BACKGROUND),
        ("0.local.background.[::1]:8080", BACKGROUND),
        ("local.localhost:8080", DEFAULT),
        ("local.default.localhost:8080", DEFAULT),
    ],
)
def test_a_host_header_means_a_service(host: str | None, expected: Service) -> None:
    """Every form of Host header that the SDK sends leads to its service."""
    assert service_of(host) is expected


@pytest.mark.parametrize("prefix", ["nowhere", "v2.background", "local.nowhere", "a.b.local.background"])
def test_an_unknown_service_or_version_is_an_error(prefix: str) -> None:
    """An unknown service or version is an error that names it and the served ones."""
    with pytest.raises(UnknownServiceError, match=r"local\.default, local\.background") as raised:
        service_of(f"{prefix}.127.0.0.1:8080")
    assert raised.value.target == prefix
    assert prefix in str(raised.value)
    assert isinstance(raised.value, DeferredError)


def test_a_target_and_its_host_header_mean_the_same_service() -> None:
    """The Host header that is made from a target leads back to the same service."""
    for service in DIRECTORY:
        assert service_of(DIRECTORY.host(f"{service.version}.{service.name}")) is service


def test_a_target_outlives_the_ports() -> None:
    """A target taken from one server's Host header means the same service on a server with other ports."""
    target = DIRECTORY.target("local.background.127.0.0.1:8080")
    assert target == "local.background"
    moved = ServiceDirectory([_service("default", 9000), _service("background", 9001)])
    assert moved.by_target(target).port == 9001
    assert moved.host(target) == "local.background.localhost:9000"


@pytest.mark.parametrize(
    ("host", "hostname"),
    [
        ("127.0.0.1", "localhost:8080"),
        ("localhost", "localhost:8080"),
        ("[::1]", "localhost:8080"),
        ("192.168.1.5", "192.168.1.5:8080"),
        ("dev.example.com", "dev.example.com:8080"),
    ],
)
def test_the_hostname_on_loopback_is_one_that_frameworks_accept(host: str, hostname: str) -> None:
    """On loopback, a task's Host ends in localhost, which Django and browsers accept; elsewhere in the host."""
    directory = ServiceDirectory([dataclasses.replace(DEFAULT, host=host)])

    assert directory.default_hostname == directory.host("") == hostname
    assert directory.host("local.default") == f"local.default.{hostname}"


def test_a_services_own_address_becomes_its_target() -> None:
    """A service's own address becomes a target without the port; a foreign host gives no target."""
    assert DIRECTORY.target("127.0.0.1:8081") == "local.background"
    assert DIRECTORY.target("127.0.0.1:8080") == ""
    assert DIRECTORY.target("www.example.com") is None


def test_services_are_found_by_id() -> None:
    """A service is found by its ID, and an unknown ID is an error."""
    assert DIRECTORY.by_id("background") is BACKGROUND
    with pytest.raises(UnknownServiceError):
        DIRECTORY.by_id("nowhere")


def test_versions_of_a_service_are_told_apart() -> None:
    """Each version has its own ID and target; the bare service name means the first version."""
    local, second = _service("worker", 8001), dataclasses.replace(_service("worker", 8002), version="v2")
    directory = ServiceDirectory([_service("default", 8000), local, second])

    assert [one.id for one in directory] == ["default", "worker", "v2.worker"]
    assert [directory.by_id(one.id) for one in directory] == list(directory)
    assert directory.by_target("v2.worker") is second
    assert directory.by_target("local.worker") is directory.by_target("worker") is local
    assert name_and_version("v2.worker") == ("worker", "v2")


def test_a_service_takes_at_least_one_task() -> None:
    """A concurrency below 1 is refused."""
    with pytest.raises(ValueError, match="at least one"):
        _service("default", 8080, concurrency=0)


def test_a_directory_has_distinct_services_and_at_least_one() -> None:
    """An empty directory and a duplicate service are refused."""
    with pytest.raises(ValueError, match="at least one"):
        ServiceDirectory([])
    with pytest.raises(ValueError, match="twice"):
        ServiceDirectory([DEFAULT, _service("default", 9000)])


def test_a_server_may_have_no_service() -> None:
    """Every target is unknown then, except that of tasks with complete URLs; no host names a service."""
    directory = ServiceDirectory([], needs_none=True)

    assert directory.by_target(HTTP_TARGET) is HTTP_TARGETS
    assert directory.target("localhost") is None
    for target in ("", "default"):
        with pytest.raises(UnknownServiceError, match="served here: none"):
            directory.by_target(target)
