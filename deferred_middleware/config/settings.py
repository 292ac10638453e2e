"""Make a setting's value from a variable's text, or check one that was given in code.

Each function raises :class:`ValueError` for what can't be used; the table of settings says what can.

Settings: one table of name, default and meaning, read once from the environment.

They are read when the package is imported, in the importing thread: the SDK's ``wrap_wsgi_app`` later replaces
``os.environ`` by a request-local one that is empty in other threads (SDK: ``runtime/request_environment.py``). For the
same reason the process's own service and version, :class:`Deployment`, are read here.

A variable that is set to the empty string counts as not set.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal

from deferred_middleware.config import keys
from deferred_middleware.config.keys import SecretKey
from deferred_middleware.errors import DeferredWarning, SettingsError, nearest
from deferred_middleware.wire import protocol

_SERVICE_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_MODULE_NAME: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_CALLABLE_NAME: Final = re.compile(rf"{_MODULE_NAME.pattern}:(\*|{_MODULE_NAME.pattern})")
_URL_PREFIX: Final = re.compile(r"(/[A-Za-z0-9._~-]+)+")
LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def queues(value: str | Iterable[str]) -> tuple[str, ...]:
    """Return the names of queues in a list."""
    names = value.split(",") if isinstance(value, str) else value
    queues = tuple(name.strip() for name in names)
    if not queues or not all(protocol.QUEUE_NAME_PATTERN.fullmatch(name) for name in queues):
        raise ValueError(value)
    if len(set(queues)) < len(queues):
        raise ValueError(value)
    return queues


def service(value: str | None) -> str | None:
    """Return a service's name."""
    if value is not None and not _SERVICE_NAME.fullmatch(value):
        raise ValueError(value)
    return value


def module(value: str | None) -> str | None:
    """Return a module's dotted name."""
    if value is not None and not _MODULE_NAME.fullmatch(value):
        raise ValueError(value)
    return value


def callables(value: str | Iterable[str]) -> tuple[str, ...]:
    """Return the names of callables in a list, as module:qualname, or module:* for a module's own functions."""
    names = tuple(name.strip() for name in (value.split(",") if isinstance(value, str) else value))
    if not all(_CALLABLE_NAME.fullmatch(name) for name in names):
        raise ValueError(value)
    return names


def paths(value: str | Sequence[str]) -> tuple[str, ...]:
    """Return the paths in a list."""
    paths = tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else tuple(value)
    if not all(re.fullmatch(r"/[\x21-\x7e]*", path) and "?" not in path for path in paths):
        raise ValueError(value)
    return paths


def url_prefix(value: str) -> str:
    """Return a path without a slash at its end."""
    if not _URL_PREFIX.fullmatch(value):
        raise ValueError(value)
    return value


def boolean(value: str | bool) -> bool:
    """Return what true or false means."""
    if isinstance(value, bool):
        return value
    if value.lower() in ("true", "1"):
        return True
    if value.lower() in ("false", "0"):
        return False
    raise ValueError(value)


def integer(lowest: int, highest: int) -> Callable[[str | int], int]:
    """Return what makes a whole number from ``lowest`` to ``highest``."""

    def convert(value: str | int) -> int:
        if isinstance(value, str) and not re.fullmatch(r"[0-9]+", value):
            raise ValueError(value)
        number = int(value)
        if not lowest <= number <= highest:
            raise ValueError(value)
        return number

    return convert


def seconds(value: str | float) -> float:
    """Return a number of seconds."""
    if isinstance(value, bool) or (isinstance(value, str) and not re.fullmatch(r"[0-9]+(\.[0-9]+)?", value)):
        raise ValueError(value)
    seconds = float(value)
    if not 0 <= seconds <= 600:
        raise ValueError(value)
    return seconds


def log_level(value: str | int) -> int:
    """Return the number of a log level."""
    if isinstance(value, str) and value.upper() in LEVELS:
        return int(getattr(logging, value.upper()))
    return integer(0, 100)(value)


def one_of(*words: str) -> Callable[[str], str]:
    """Return what takes one of ``words``."""

    def convert(value: str) -> str:
        if value not in words:
            raise ValueError(value)
        return value

    return convert


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One row of the table of settings."""

    field: str
    """Attribute of :class:`Settings`."""
    variable: str
    """Environment variable."""
    alias: str | None = None
    """The variable's name in freshplanet's module, read when ``variable`` is not set."""
    convert: Callable[[Any], object]
    """Makes the value from the variable's text, or checks one given in code; ValueError refuses it."""
    accepts: str
    """What it takes, for people."""
    meaning: str
    secret: bool = False
    """Whether its value must not be shown."""

    def refuse(self, variable: str, value: object) -> SettingsError:
        """Return the error that says that ``value`` can't be used."""
        return SettingsError(variable, SecretKey() if self.secret else value, self.accepts)


TABLE: Final[tuple[Setting, ...]] = (
    Setting(
        field="default_queues",
        variable="DEFERRED_DEFAULT_QUEUES",
        alias="DEFAULT_QUEUES",
        convert=queues,
        accepts="queue names ([a-zA-Z0-9-], up to 100 characters each) separated by commas, each once",
        meaning=(
            "The queues for calls without _queue. An unnamed call goes to one of them at random, "
            "a named call always to the same one, by a hash of its name, because names are unique "
            "per queue."
        ),
    ),
    Setting(
        field="background_module",
        variable="DEFERRED_BACKGROUND_MODULE",
        alias="BACKGROUND_MODULE",
        convert=service,
        accepts="the name of a service: [a-z0-9-], up to 63 characters",
        meaning=(
            "The service that runs the tasks enqueued from the default service, at the same "
            "version. Tasks of other services stay in their own."
        ),
    ),
    Setting(
        field="warmup_module",
        variable="DEFERRED_WARMUP_MODULE",
        alias="WARMUP_MODULE",
        convert=module,
        accepts="the dotted name of a module that can be imported",
        meaning="A module that is imported once, before the first payload is decoded.",
    ),
    Setting(
        field="url_prefix",
        variable="DEFERRED_URL_PREFIX",
        convert=url_prefix,
        accepts="a path such as /_cb/deferred, with a slash at its start and none at its end",
        meaning="The path under which tasks are delivered.",
    ),
    Setting(
        field="legacy_urls",
        variable="DEFERRED_LEGACY_URLS",
        convert=paths,
        accepts="paths that begin with a slash, separated by commas",
        meaning=(
            "Paths at which tasks of google.appengine.ext.deferred are run as well, such as /_ah/queue/deferred: those "
            "that were enqueued before the app came to this library."
        ),
    ),
    Setting(
        field="secret_keys",
        variable="DEFERRED_SECRET_KEYS",
        convert=keys.parse,
        accepts=f"random texts of at least {keys.MIN_KEY_BYTES} bytes each, newest first, separated by commas",
        meaning=(
            "The keys by which tasks are known to be the app's own: the first one signs, all verify. "
            "Everywhere but on App Engine standard there must be one."
        ),
        secret=True,
    ),
    Setting(
        field="require_signature",
        variable="DEFERRED_REQUIRE_SIGNATURE",
        convert=boolean,
        accepts="true or false",
        meaning=("Whether a task without a signature is refused on App Engine standard. Anywhere else it always is."),
    ),
    Setting(
        field="allowed_callables",
        variable="DEFERRED_ALLOWED_CALLABLES",
        convert=callables,
        accepts="names such as shop.mail:send, shop.orders:Order.close or shop.jobs:*, separated by commas",
        meaning=(
            "The callables that a task may call: nothing else is deferred or run, and of a task's payload nothing is "
            "imported before its callable is found in the list. module:* stands for the functions that a module "
            "defines itself, without its classes and their methods. Without a list, a task may call anything."
        ),
    ),
    Setting(
        field="pickle_protocol",
        variable="DEFERRED_PICKLE_PROTOCOL",
        convert=integer(0, pickle.HIGHEST_PROTOCOL),
        accepts=f"a whole number from 0 to {pickle.HIGHEST_PROTOCOL}",
        meaning="The pickle protocol that payloads are written with; any is read.",
    ),
    Setting(
        field="max_payload_bytes",
        variable="DEFERRED_MAX_PAYLOAD_BYTES",
        convert=integer(1, 2**31),
        accepts="a whole number of bytes, at least 1",
        meaning=(
            "The largest payload: a larger one is an error at defer(), and a larger request body is "
            "refused with 413. What a queue can carry limits a payload too: "
            f"{protocol.MAX_PUSH_TASK_BYTES} bytes for a task with its URL and headers."
        ),
    ),
    Setting(
        field="enqueue_seconds",
        variable="DEFERRED_ENQUEUE_SECONDS",
        convert=seconds,
        accepts="a number of seconds, 0 to 600",
        meaning=(
            "How long an enqueue is tried: transient errors and time-outs are tried again until then, "
            "under a name that is generated once. 0: a single attempt, and the queue chooses the name."
        ),
    ),
    Setting(
        field="coalesce",
        variable="DEFERRED_COALESCE",
        convert=boolean,
        accepts="true or false",
        meaning=(
            "Whether the defer_async calls of a request leave together when the app has returned its response, "
            "and none of them if it raises."
        ),
    ),
    Setting(
        field="log_level",
        variable="DEFERRED_LOG_LEVEL",
        convert=log_level,
        accepts=f"one of {', '.join(LEVELS)}, or a number",
        meaning="The level of the log line for a task that went well.",
    ),
    Setting(
        field="retry_log_level",
        variable="DEFERRED_RETRY_LOG_LEVEL",
        convert=log_level,
        accepts=f"one of {', '.join(LEVELS)}, or a number",
        meaning=(
            "The level of the record for a failed attempt that will be tried again. An attempt "
            "known to be the last (its _retry_options had a task_retry_limit alone) is always an "
            "ERROR."
        ),
    ),
    Setting(
        field="log_arguments",
        variable="DEFERRED_LOG_ARGUMENTS",
        convert=one_of("none", "names", "short"),
        accepts="none, names or short",
        meaning=(
            "How much of a call's arguments is logged when it fails: none, their names, or their values, shortened. "
            "With none and names, a dead letter's payload isn't logged either."
        ),
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a process; see the table in this module for what each means.

    Raises :class:`SettingsError` for a value that can't be used.
    """

    default_queues: tuple[str, ...] = ("default",)
    background_module: str | None = None
    warmup_module: str | None = None
    url_prefix: str = protocol.URL_PREFIX
    legacy_urls: tuple[str, ...] = ()
    secret_keys: tuple[SecretKey, ...] = dataclasses.field(default_factory=keys.of_process, repr=False)
    require_signature: bool = False
    allowed_callables: tuple[str, ...] = ()
    pickle_protocol: int = 5
    max_payload_bytes: int = 10 * 1024 * 1024
    enqueue_seconds: float = 30.0
    coalesce: bool = False
    log_level: int = logging.DEBUG
    retry_log_level: int = logging.ERROR
    log_arguments: Literal["none", "names", "short"] = "short"

    def __post_init__(self) -> None:
        for setting in TABLE:
            value = getattr(self, setting.field)
            try:
                converted = setting.convert(value)
            except (ValueError, TypeError, AttributeError):
                raise setting.refuse(setting.variable, value) from None
            object.__setattr__(self, setting.field, converted)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the settings from ``environ``, by default the process's own.

        A variable that looks like a misspelt one of ours is a :class:`DeferredWarning`.
        """
        if environ is None:
            environ = os.environ
        found: dict[str, Any] = {}
        for setting in TABLE:
            for variable in (setting.variable, setting.alias):
                value = environ.get(variable, "").strip() if variable else ""
                if not value:
                    continue
                try:
                    found[setting.field] = setting.convert(value)
                except ValueError:
                    raise setting.refuse(str(variable), value) from None
                break
        _warn_of_misspelt(environ)
        return cls(**found)


def _warn_of_misspelt(environ: Mapping[str, str]) -> None:
    known = [setting.variable for setting in TABLE]
    for variable in environ:
        if variable.startswith("DEFERRED_") and variable not in known:
            meant = nearest(variable, known, similarity=0.85)
            if meant:
                message = f"{variable} is no setting of deferred_middleware; is it meant as {meant}?"
                warnings.warn(message, DeferredWarning, stacklevel=4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deployment:
    """Which service and version of the app this process is, and where; None where the platform doesn't say.

    The platform sets ``GAE_SERVICE``, ``GAE_VERSION``, ``GAE_APPLICATION`` and ``GAE_ENV``
    (https://cloud.google.com/appengine/docs/standard/python3/runtime#environment_variables).
    """

    service: str | None = None
    version: str | None = None
    application: str = ""
    """The app's ID, the project's, without the region that the platform writes before it; empty if not known."""
    environment: str | None = None
    """``standard`` on App Engine standard, ``localdev`` on the local server."""

    @property
    def on_app_engine_standard(self) -> bool:
        """Whether the platform keeps strangers from sending the task queue's headers."""
        return self.environment == "standard"

    @property
    def on_local_server(self) -> bool:
        """Whether ``deferred-middleware serve`` runs this process."""
        return self.environment == "localdev"

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Deployment:
        """Read them from ``environ``, by default the process's own."""
        if environ is None:
            environ = os.environ
        names = ("GAE_APPLICATION", "APPLICATION_ID", "GOOGLE_CLOUD_PROJECT")
        application = next((environ[name] for name in names if environ.get(name)), "")
        return cls(
            service=environ.get("GAE_SERVICE") or None,
            version=environ.get("GAE_VERSION") or None,
            # As in s~project, or e~project in Europe.
            application=application.rpartition("~")[2],
            environment=environ.get("GAE_ENV") or None,
        )


def _is_our_command(arguments: Sequence[str]) -> bool:
    """Tell whether a process with these arguments is the ``deferred-middleware`` command, or one that it started."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument == "-m":
            return following.partition(".")[0] == "deferred_middleware"
        if os.path.basename(argument) == "deferred-middleware":
            return True
    return False


def _read() -> Settings | SettingsError:
    """Read the settings at import, where a wrong value is an error, but for our own command.

    That needs none itself, and tells what stops the app it serves in one sentence: there the error waits until the app
    needs the settings.
    """
    try:
        settings = Settings.from_environ()
        keys.install(settings.secret_keys)
        return settings
    except SettingsError as error:
        if _is_our_command(sys.orig_argv):
            return error
        raise


_settings = _read()
_deployment = Deployment.from_environ()


def current_settings() -> Settings:
    """Return the process's settings."""
    if isinstance(_settings, SettingsError):
        raise _settings
    return _settings


def current_deployment() -> Deployment:
    """Return the process's service and version, as they were when the package was imported."""
    return _deployment


def install_settings(settings: Settings) -> None:
    """Make ``settings`` the process's, so that what is enqueued agrees with what is run."""
    global _settings
    _settings = settings


def make_key_for_tests() -> None:
    """Give the process a random key if it needs one and has none, so that an app can be tested without configuring any.

    It is as safe as any other key: nobody knows it.
    """
    if not keys.of_process() and not current_deployment().on_app_engine_standard:
        keys.install((keys.make(),))
        install_settings(dataclasses.replace(current_settings(), secret_keys=keys.of_process()))
