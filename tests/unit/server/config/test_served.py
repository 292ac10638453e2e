"""Which service runs which app, according to the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from deferred_middleware.errors import ServerError
from deferred_middleware.server.config.served import parse_served


def pairs(apps: list[str], services: list[str]) -> list[tuple[str, str]]:
    """Return pairs of service and app, in their order."""
    return [(one.service, one.app) for one in parse_served(apps, services).apps]


def test_one_app_serves_every_service() -> None:
    """If only one app is given, every service runs it."""
    assert pairs(["main:app"], ["default", "background"]) == [
        ("default", "main:app"),
        ("background", "main:app"),
    ]


def test_without_a_service_it_is_the_default_one() -> None:
    """An app without a --service option is the default service."""
    assert pairs(["main:app"], []) == [("default", "main:app")]


def test_several_apps_are_paired_in_order() -> None:
    """Several apps are paired with as many services, in order."""
    assert pairs(["web:app", "work:app"], ["default", "background"]) == [
        ("default", "web:app"),
        ("background", "work:app"),
    ]


@pytest.mark.parametrize(
    ("apps", "services", "expected"),
    [
        (["a:app", "b:app"], [], "2 apps need as many --service options, in the same order; none is given"),
        (["a:app", "b:app"], ["default"], "1 is given"),
        (["a:app", "b:app"], ["default", "x", "y"], "3 are given"),
        (["a:app"], ["background"], "needs a service called 'default'"),
        (["a:app"], ["default", "default"], "--service default is given twice"),
        (["a:app"], ["default", "Back_ground"], "'Back_ground' can't be a service's name"),
        (["a:app"], ["default", "x-"], "'x-' can't be"),
        (["a:app"], ["default", "x\n"], "can't be a service's name"),
        (["a:app"], ["default", ""], "'' can't be"),
        (["a:app"], ["default", "x" * 64], "can't be"),
        ([], [], "There is nothing to serve; give an APP, such as main:app, or --service NAME=URL."),
        (["main"], [], "MODULE:CALLABLE"),
        (["main:"], [], "MODULE:CALLABLE"),
    ],
)
def test_what_does_not_pair_is_told(apps: list[str], services: list[str], expected: str) -> None:
    """Each error names the wrong value."""
    with pytest.raises(ServerError) as caught:
        parse_served(apps, services)
    assert expected in str(caught.value)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """Two app.yaml files, for the services ``default`` and ``background``."""
    (tmp_path / "app.yaml").write_text("runtime: python312\n")
    (tmp_path / "background.yml").write_text("runtime: python312\nservice: background\nentrypoint: gunicorn work:app\n")
    return str(tmp_path / "app.yaml"), str(tmp_path / "background.yml")


def test_files_name_their_services(files: tuple[str, str]) -> None:
    """An app.yaml gives the service's name, its app and its directory."""
    default, background = parse_served(files, []).apps
    assert (default.service, default.app) == ("default", "main:app")
    assert (background.service, background.app) == ("background", "work:app")
    assert background.directory == Path(files[1]).parent
    assert background.description == f"work:app ({files[1]})"


def test_files_stand_beside_apps(files: tuple[str, str]) -> None:
    """Files and apps can be mixed; --service options name the apps, and services follow the command line's order."""
    assert pairs(["web:app", files[1]], []) == [("default", "web:app"), ("background", "work:app")]
    assert pairs([files[0], "web:app", "admin:app"], ["web", "admin"]) == [
        ("default", "main:app"),
        ("web", "web:app"),
        ("admin", "admin:app"),
    ]


@pytest.mark.parametrize(
    ("apps", "services", "expected"),
    [
        (["app.yaml", "app.yaml"], [], "Service 'default' is given twice: main:app (app.yaml) and main:app (app.yaml)"),
        (["main:app", "app.yaml"], [], "Service 'default' is given twice: main:app and main:app (app.yaml)"),
        (["background.yml"], [], "needs a service called 'default'"),
        (["app.yaml"], ["background"], "--service background needs an app given as MODULE:CALLABLE"),
        (["nothing.yaml"], [], "nothing.yaml: it can't be read: No such file or directory."),
    ],
)
def test_what_does_not_go_with_files_is_told(
    apps: list[str], services: list[str], expected: str, files: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A duplicate or missing service, an unreadable file, and a --service option without an app are errors."""
    monkeypatch.chdir(Path(files[0]).parent)
    with pytest.raises(ServerError) as caught:
        parse_served(apps, services)
    assert expected in str(caught.value)


def test_an_app_elsewhere_is_a_service() -> None:
    """A service given as NAME=URL uses none of the apps on the command line."""
    served = parse_served(["main:app"], ["default", "pdf=http://127.0.0.1:9000", "background"])
    assert [(one.service, one.app) for one in served.apps] == [("default", "main:app"), ("background", "main:app")]
    assert [(one.service, one.host, one.port) for one in served.external] == [("pdf", "127.0.0.1", 9000)]


def test_all_apps_may_be_elsewhere() -> None:
    """If the default service is external, no app is required."""
    served = parse_served([], ["default=http://localhost:9000"])
    assert (len(served.apps), served.external[0].url) == (0, "http://localhost:9000")


def test_another_machine_has_to_be_meant() -> None:
    """An external service on another machine is refused unless --remote-services is given."""
    services = ["default=http://192.0.2.1:9000"]
    with pytest.raises(
        ServerError,
        match=r"would leave this machine unencrypted; give a URL of this machine, .* or add --remote-services",
    ):
        parse_served([], services)
    assert parse_served([], services, remote=True).external[0].is_remote


@pytest.mark.parametrize(
    ("apps", "services", "expected"),
    [
        ([], ["pdf=http://127.0.0.1:9000"], "needs a service called 'default'"),
        (["main:app"], ["default", "pdf=http://127.0.0.1:1", "pdf=http://127.0.0.1:2"], "--service pdf is given twice"),
        (["main:app"], ["default=http://127.0.0.1:1"], "Service 'default' is given twice: main:app and http://127"),
        (["main:app"], ["Pdf=http://127.0.0.1:1"], "'Pdf' can't be a service's name"),
    ],
)
def test_what_does_not_go_with_an_app_elsewhere_is_told(apps: list[str], services: list[str], expected: str) -> None:
    """Duplicate, missing and invalid names are also errors for external services."""
    with pytest.raises(ServerError) as caught:
        parse_served(apps, services)
    assert expected in str(caught.value)


def test_a_service_may_have_versions() -> None:
    """A service's name may have a version prefix; ``local`` is the version of a service without one."""
    served = parse_served(["main:app"], ["v1.default", "v2.default", "local.worker", "v2.worker=http://127.0.0.1:9000"])

    assert [one.service for one in served.apps] == ["v1.default", "v2.default", "worker"]
    assert [one.service for one in served.external] == ["v2.worker"]
    for wrong in (["v1.v2.default"], [".default"], ["default", "local.default"], ["V1.default"]):
        with pytest.raises(ServerError, match="--service"):
            parse_served(["main:app"], wrong)
