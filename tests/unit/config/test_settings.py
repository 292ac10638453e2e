"""Tests of the settings: their sources, their checks, and their installation."""

from __future__ import annotations

import enum
import logging
import os
import subprocess
import sys

import pytest

from deferred_middleware import DeferredError, DeferredWarning, Settings, SettingsError
from deferred_middleware.config import process
from deferred_middleware.config.process import Deployment, _is_our_command, current_settings, install_settings
from deferred_middleware.config.settings import TABLE


def test_nothing_set_gives_the_defaults() -> None:
    """An empty environment gives the documented defaults."""
    settings = Settings.from_environ({})

    assert settings == Settings()
    assert settings.default_queues == ("default",)
    assert settings.background_module is None
    assert settings.url_prefix == "/_cb/deferred"
    assert settings.log_level == logging.DEBUG
    assert settings.retry_log_level == logging.ERROR
    assert settings.max_payload_bytes == 10_485_760
    assert settings.pickle_protocol == 5


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("DEFERRED_DEFAULT_QUEUES", "a,b-1", "default_queues", ("a", "b-1")),
        ("DEFAULT_QUEUES", "a, b", "default_queues", ("a", "b")),
        ("DEFERRED_BACKGROUND_MODULE", "background", "background_module", "background"),
        ("BACKGROUND_MODULE", "worker-2", "background_module", "worker-2"),
        ("DEFERRED_WARMUP_MODULE", "app.warm_up", "warmup_module", "app.warm_up"),
        ("WARMUP_MODULE", "main", "warmup_module", "main"),
        ("DEFERRED_URL_PREFIX", "/tasks", "url_prefix", "/tasks"),
        ("DEFERRED_BACKGROUND_VERSION", "default", "background_version", "default"),
        ("DEFERRED_BACKGROUND_VERSION", "v2", "background_version", "v2"),
        ("DEFERRED_DEFAULT_URL", "/_ah/queue/deferred", "default_url", "/_ah/queue/deferred"),
        ("DEFERRED_LEGACY_URLS", "/_ah/queue/deferred, /old*", "legacy_urls", ("/_ah/queue/deferred", "/old*")),
        ("DEFERRED_ALLOWED_CALLABLES", "a.b:C.d, e:*", "allowed_callables", ("a.b:C.d", "e:*")),
        ("DEFERRED_PICKLE_PROTOCOL", "2", "pickle_protocol", 2),
        ("DEFERRED_MAX_PAYLOAD_BYTES", "1000", "max_payload_bytes", 1000),
        ("DEFERRED_LOG_LEVEL", "info", "log_level", logging.INFO),
        ("DEFERRED_LOG_LEVEL", "15", "log_level", 15),
        ("DEFERRED_RETRY_LOG_LEVEL", "WARNING", "retry_log_level", logging.WARNING),
    ],
)
def test_a_variable_sets_its_field(variable: str, text: str, field: str, value: object) -> None:
    """Each variable sets its field, also under the original module's name without the prefix."""
    assert getattr(Settings.from_environ({variable: text}), field) == value


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("DEFERRED_DEFAULT_QUEUES", "a,,b"),
        ("DEFERRED_DEFAULT_QUEUES", "a b"),
        ("DEFERRED_DEFAULT_QUEUES", "a,a"),
        ("DEFAULT_QUEUES", "under_score"),
        ("DEFERRED_BACKGROUND_MODULE", "Background"),
        ("DEFERRED_BACKGROUND_MODULE", "v1.background"),
        ("DEFERRED_WARMUP_MODULE", "app/warm"),
        ("DEFERRED_WARMUP_MODULE", "app..warm"),
        ("DEFERRED_BACKGROUND_VERSION", "v2.background"),
        ("DEFERRED_BACKGROUND_VERSION", "V2"),
        ("DEFERRED_DEFAULT_URL", "old"),
        ("DEFERRED_DEFAULT_URL", "//old"),
        ("DEFERRED_DEFAULT_URL", "/old*"),
        ("DEFERRED_DEFAULT_URL", "/old#x"),
        ("DEFERRED_LEGACY_URLS", "old"),
        ("DEFERRED_LEGACY_URLS", "/old?x=1"),
        ("DEFERRED_LEGACY_URLS", "/old/*/new"),
        ("DEFERRED_LEGACY_URLS", "/old**"),
        ("DEFERRED_LEGACY_URLS", "/*"),
        ("DEFERRED_LEGACY_URLS", "*"),
        ("DEFERRED_URL_PREFIX", "tasks"),
        ("DEFERRED_URL_PREFIX", "/tasks/"),
        ("DEFERRED_URL_PREFIX", "/"),
        ("DEFERRED_URL_PREFIX", "/a?b"),
        ("DEFERRED_ALLOWED_CALLABLES", "shop.mail"),
        ("DEFERRED_ALLOWED_CALLABLES", "shop.mail.send"),
        ("DEFERRED_ALLOWED_CALLABLES", "shop.mail/send"),
        ("DEFERRED_ALLOWED_CALLABLES", "shop.*:send"),
        ("DEFERRED_ALLOWED_CALLABLES", "shop:Order.*"),
        ("DEFERRED_ALLOWED_CALLABLES", "*:*"),
        ("DEFERRED_ALLOWED_CALLABLES", "shop:send,"),
        ("DEFERRED_PICKLE_PROTOCOL", "6"),
        ("DEFERRED_PICKLE_PROTOCOL", "-1"),
        ("DEFERRED_PICKLE_PROTOCOL", "five"),
        ("DEFERRED_MAX_PAYLOAD_BYTES", "0"),
        ("DEFERRED_MAX_PAYLOAD_BYTES", "10MB"),
        ("DEFERRED_LOG_LEVEL", "LOUD"),
        ("DEFERRED_RETRY_LOG_LEVEL", "-5"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_it(variable: str, text: str) -> None:
    """The error names the variable as it was set, its value, and the accepted values."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_environ({variable: text})

    assert isinstance(caught.value, (DeferredError, ValueError))
    assert (caught.value.variable, caught.value.value) == (variable, text)
    (setting,) = (row for row in TABLE if variable in (row.variable, row.alias))
    assert str(caught.value) == f"{variable}={text!r} can't be used: it takes {setting.accepts}."


@pytest.mark.parametrize("url", ["/_cb/deferred", "/_cb/deferred/x"])
def test_the_default_url_is_outside_of_the_prefix(url: str) -> None:
    """Below the prefix, a URL names a call; one for all calls can't."""
    with pytest.raises(SettingsError, match="outside of /_cb/deferred"):
        Settings(default_url=url)


def test_the_canonical_name_wins() -> None:
    """If both names are set, the one with the prefix takes precedence."""
    environ = {"DEFERRED_DEFAULT_QUEUES": "ours", "DEFAULT_QUEUES": "theirs"}

    assert Settings.from_environ(environ).default_queues == ("ours",)


def test_an_empty_variable_is_not_set() -> None:
    """An empty variable counts as absent, so that its older name applies."""
    environ = {"DEFERRED_BACKGROUND_MODULE": " ", "BACKGROUND_MODULE": "old", "DEFERRED_LOG_LEVEL": ""}

    settings = Settings.from_environ(environ)

    assert settings.background_module == "old"
    assert settings.log_level == logging.DEBUG


def test_values_given_in_code_are_checked_alike() -> None:
    """Settings given in code are checked, too: a string is one queue, and a wrong value raises an error."""
    assert Settings(default_queues="only").default_queues == ("only",)  # type: ignore[arg-type]
    assert Settings(default_queues=["a", "b"]).default_queues == ("a", "b")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="DEFERRED_DEFAULT_QUEUES"):
        Settings(default_queues=())
    with pytest.raises(SettingsError, match="DEFERRED_LOG_LEVEL"):
        Settings(log_level=None)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="DEFERRED_URL_PREFIX"):
        Settings(url_prefix="no/slash")


def test_a_misspelt_variable_is_a_warning() -> None:
    """A variable that resembles one of the library's causes a warning with the intended name."""
    with pytest.warns(DeferredWarning, match="DEFERRED_BACKGROUND_MODUL .*DEFERRED_BACKGROUND_MODULE"):
        Settings.from_environ({"DEFERRED_BACKGROUND_MODUL": "background"})


def test_other_variables_are_left_alone() -> None:
    """A variable of the older library or of another program causes no warning."""
    environ = {"DEFERRED_USE_CROSS_COMPATIBLE_PICKLE_PROTOCOL": "1", "PATH": "/bin"}

    assert Settings.from_environ(environ) == Settings()


def test_every_field_has_a_row() -> None:
    """The table and the dataclass have the same settings."""
    assert {row.field for row in TABLE} == set(Settings.__dataclass_fields__)


def test_deployment_is_read_from_the_platforms_variables() -> None:
    """Service and version come from the platform's variables; an empty variable means unknown."""
    environ = {"GAE_SERVICE": "worker", "GAE_VERSION": "v7"}

    assert Deployment.from_environ(environ) == Deployment(service="worker", version="v7")
    assert Deployment.from_environ({"GAE_SERVICE": ""}) == Deployment()


def test_installed_settings_are_the_current_ones() -> None:
    """Installed settings become the current ones."""
    settings = Settings(url_prefix="/elsewhere")

    install_settings(settings)

    assert current_settings() is settings


def import_with(**environ: str) -> subprocess.CompletedProcess[str]:
    """Import the package in a new process with ``environ`` added."""
    program = "import deferred_middleware.config.process as s; print(s.current_settings(), s.current_deployment())"
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_wrong_value_stops_the_process_at_import() -> None:
    """A wrong variable raises an error when the app starts, not at the first ``defer``."""
    result = import_with(DEFERRED_LOG_LEVEL="LOUD")

    assert result.returncode != 0
    assert "DEFERRED_LOG_LEVEL='LOUD' can't be used" in result.stderr


def test_settings_and_deployment_are_read_at_import() -> None:
    """The process's environment is read when the package is imported."""
    result = import_with(DEFERRED_BACKGROUND_MODULE="worker", GAE_VERSION="v3")

    assert "background_module='worker'" in result.stdout
    assert "version='v3'" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "ours"),
    [
        (["python", "-m", "deferred_middleware", "serve"], True),
        (["python", "-u", "/venv/site-packages/deferred_middleware/server/apps/entry.py"], True),
        (["python", "/home/me/apps/entry.py"], False),
        (["/venv/bin/python", "/venv/bin/deferred-middleware", "serve", "main:app"], True),
        (["python", "-m", "gunicorn", "-m", "deferred_middleware"], False),
        (["python", "main.py"], False),
        (["python"], False),
    ],
)
def test_our_own_command_is_known(arguments: list[str], ours: bool) -> None:
    """The library recognises its own command's processes; only there is a settings error delayed."""
    assert _is_our_command(arguments) is ours


def test_in_our_command_the_error_waits_for_who_needs_the_settings() -> None:
    """In the command's own process, a wrong variable doesn't prevent the start."""
    result = subprocess.run(
        [sys.executable, "-m", "deferred_middleware", "--version"],
        env={**os.environ, "DEFERRED_LOG_LEVEL": "LOUD"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (result.returncode, result.stderr) == (0, "")


def test_an_error_that_waited_is_raised() -> None:
    """A delayed settings error is raised when the settings are read."""
    process._settings = SettingsError("DEFERRED_LOG_LEVEL", "LOUD", "a level")

    with pytest.raises(SettingsError, match="LOUD"):
        current_settings()


class _Text(str, enum.Enum):
    """Strings as members of an enum, whose ``str()`` gives the member's name since Python 3.11."""

    QUEUE = "mail"
    SERVICE = "worker"
    PREFIX = "/tasks"


def test_the_value_of_an_enum_member_counts() -> None:
    """A setting that is a member of an enum of strings is kept as a plain string."""
    settings = Settings(
        default_queues=(_Text.QUEUE,),
        background_module=_Text.SERVICE,
        warmup_module=_Text.SERVICE,
        url_prefix=_Text.PREFIX,
    )

    for value in (*settings.default_queues, settings.background_module, settings.warmup_module, settings.url_prefix):
        assert type(value) is str
    assert settings.background_module == "worker"
