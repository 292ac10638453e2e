"""The environment variables of apps in the server's processes and of external apps."""

from __future__ import annotations

import re
import sys

import pytest

from deferred_middleware.errors import ServerError
from deferred_middleware.server.apps.environ import STEERING, Platform, app_environ, base_environ, external_environ
from deferred_middleware.server.config.services import Service

PLATFORM = Platform(
    project="local-app",
    app_id="dev~local-app",
    default_hostname="127.0.0.1:8080",
    api_address=("127.0.0.1", 8000),
    inherited={"HOME": "/home/me", "GAE_SERVICE": "other", "COLOR": "red", "DEFERRED_SECRET_KEYS": "the-servers"},
)
SERVICE = Service(name="background", version="local", host="127.0.0.1", port=8081, concurrency=6)


def test_the_environment_is_app_engines() -> None:
    """The environment has App Engine's variables and the address of the APIs."""
    environ = app_environ(PLATFORM, SERVICE, api_ticket="ticket")
    assert environ["HOME"] == "/home/me"
    assert (environ["GAE_SERVICE"], environ["GAE_VERSION"]) == ("background", "local")
    assert environ["GAE_APPLICATION"] == environ["APPLICATION_ID"] == "dev~local-app"
    assert environ["GOOGLE_CLOUD_PROJECT"] == "local-app"
    assert environ["GAE_RUNTIME"] == f"python3{sys.version_info.minor}"
    assert (environ["API_HOST"], environ["API_PORT"]) == ("127.0.0.1", "8000")


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("GAE_APPLICATION", "dev~local-app"),
        ("GAE_DEPLOYMENT_ID", "[0-9]+"),
        ("GAE_ENV", "localdev"),
        ("GAE_INSTANCE", ".+"),
        ("GAE_MEMORY_MB", "[0-9]+"),
        ("GAE_RUNTIME", "python3[0-9]+"),
        ("GAE_SERVICE", "background"),
        ("GAE_VERSION", "local"),
        ("GOOGLE_CLOUD_PROJECT", "local-app"),
        ("PORT", "8081"),
    ],
)
def test_every_documented_variable_is_set(name: str, pattern: str) -> None:
    """Each variable that App Engine documents is set, even if the shell or app.yaml sets another value."""
    environ = app_environ(PLATFORM, SERVICE, api_ticket="ticket", env_variables={name: "?"}, source="app.yaml")
    assert re.fullmatch(pattern, environ[name])


def test_the_files_variables_are_set_and_the_servers_win(caplog: pytest.LogCaptureFixture) -> None:
    """Variables of app.yaml are set, except those that the server sets itself; a warning names these."""
    own = {
        "COLOR": "blue",
        "API_HOST": "elsewhere",
        "GAE_SERVICE": "background",
        "DEFERRED_SECRET_KEYS": " ",
        "APPENGINE_USE_CLOUDTASK_PUSH_QUEUE": "true",
    }
    environ = app_environ(PLATFORM, SERVICE, api_ticket="ticket", env_variables=own, source="worker/app.yaml")
    assert (environ["COLOR"], environ["HOME"], environ["API_HOST"]) == ("blue", "/home/me", "127.0.0.1")
    assert environ["DEFERRED_SECRET_KEYS"] == "the-servers"
    assert "APPENGINE_USE_CLOUDTASK_PUSH_QUEUE" not in environ
    told = [record.getMessage() for record in caplog.records]
    assert "worker/app.yaml sets API_HOST; the local server's own value is used instead." in told
    assert [text for text in told if "worker/app.yaml sets APPENGINE_USE_CLOUDTASK_PUSH_QUEUE" in text]
    assert len(told) == 2


def test_an_app_elsewhere_gets_what_it_needs_and_no_more() -> None:
    """An external app gets only the address of the APIs, a ticket, the keys and its own names."""
    assert external_environ(PLATFORM, SERVICE, api_ticket="ticket") == {
        "API_HOST": "127.0.0.1",
        "API_PORT": "8000",
        "HTTP_X_APPENGINE_API_TICKET": "ticket",
        "DEFERRED_SECRET_KEYS": "the-servers",
        "DEFAULT_VERSION_HOSTNAME": "127.0.0.1:8080",
        "GAE_APPLICATION": "dev~local-app",
        "GAE_SERVICE": "background",
        "GAE_VERSION": "local",
    }


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("A", "\ud800", r"A can't be set, because the locale's encoding \(utf-8\) has no '.ud800'; use a UTF-8"),
        ("\ud800", "a", r".ud800 can't be set, because"),
        ("A", "a\0b", "'A' can't be set"),
        ("A=B", "a", "'A=B' can't be set"),
        ("", "a", "'' can't be set"),
    ],
)
def test_a_variable_that_no_process_can_have_is_named(name: str, value: str, reason: str) -> None:
    """A variable that the system or the locale can't take is an error of one sentence, not of the start."""
    with pytest.raises(ServerError, match=f"^worker/app.yaml: environment variable {reason}"):
        app_environ(PLATFORM, SERVICE, api_ticket="ticket", env_variables={name: value}, source="worker/app.yaml")


@pytest.mark.parametrize("name", [*STEERING, "HTTP_X_APPENGINE_DEFAULT_NAMESPACE"])
def test_what_steers_the_sdk_elsewhere_is_left_out(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """A variable that makes the SDK use another server is not inherited, nor taken from app.yaml; the log says so."""
    steering = {name: "true", "COLOR": "red"}
    inherited = base_environ(steering, secret_key="key")
    assert inherited == {"COLOR": "red", "DEFERRED_SECRET_KEYS": "key"}
    environ = app_environ(PLATFORM, SERVICE, api_ticket="ticket", env_variables=steering, source="app.yaml")
    assert environ["COLOR"] == "red"
    assert name not in environ
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert told[0].startswith(f"{name} is not passed on to the app: with it, ")
    assert told[1].startswith(f"app.yaml sets {name}, which is not passed on: with it, ")


@pytest.mark.parametrize(("host", "passed_on"), [("localhost", True), ("127.0.0.1", True), ("smtp.example.com", False)])
def test_a_mail_server_on_this_machine_may_be_used(host: str, passed_on: bool) -> None:
    """Mail goes to an SMTP server only if that is on this machine."""
    given = {"APPENGINE_USE_SMTP_MAIL_SERVICE": "true", "APPENGINE_SMTP_HOST": host}
    assert ("APPENGINE_USE_SMTP_MAIL_SERVICE" in base_environ(given, secret_key="key")) is passed_on


@pytest.mark.parametrize(
    "name", ["DATASTORE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS", "NDB_PY2_UNPICKLE_COMPAT"]
)
def test_other_variables_are_inherited(name: str) -> None:
    """Variables of other libraries, and switches of the SDK that concern this process only, are passed on."""
    assert base_environ({name: "1"}, secret_key="key")[name] == "1"
