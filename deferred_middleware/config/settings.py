"""The settings: one table of names, conversions and meanings, and the value that holds them.

A variable that is set to the empty string counts as not set.

:mod:`deferred_middleware.config.process` reads the settings of the process.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from deferred_middleware.config import conversions, keys
from deferred_middleware.config.keys import SecretKey
from deferred_middleware.config.service_urls import ServiceUrls
from deferred_middleware.config.service_urls import parse as parse_service_urls
from deferred_middleware.errors import DeferredWarning, SettingsError, nearest
from deferred_middleware.wire import protocol

CLOUD_TASKS_VARIABLE: Final = "APPENGINE_USE_CLOUDTASK_PUSH_QUEUE"
"""The SDK's own switch: ``true`` sends push tasks to Cloud Tasks (SDK: ``api/taskqueue/cloudtask.py``)."""
APP_ENGINE: Final = "app-engine"
CLOUD_TASKS: Final = "cloud-tasks"
SAME_VERSION: Final = "same"
DEFAULT_VERSION: Final = "default"


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
    """Makes the value from the variable's text, or checks a value given in code. Raises ValueError."""
    accepts: str
    """The accepted values, for people."""
    meaning: str
    """What the setting does, for people."""
    secret: bool = False
    """Whether the value must not be shown."""

    def error(self, variable: str, value: object) -> SettingsError:
        """Return the error for a ``value`` that is not accepted."""
        return SettingsError(variable, SecretKey() if self.secret else value, self.accepts)


TABLE: Final[tuple[Setting, ...]] = (
    Setting(
        field="engine",
        variable="DEFERRED_ENGINE",
        convert=conversions.optional(conversions.one_of(APP_ENGINE, CLOUD_TASKS)),
        accepts=f"{APP_ENGINE} or {CLOUD_TASKS}",
        meaning=(
            "Who takes the tasks: App Engine's taskqueue API, or Google Cloud Tasks. Without it, the SDK's own switch "
            "APPENGINE_USE_CLOUDTASK_PUSH_QUEUE decides."
        ),
    ),
    Setting(
        field="service_urls",
        variable="DEFERRED_SERVICE_URLS",
        convert=parse_service_urls,
        accepts=(
            "services and their URLs, such as default=https://shop.example.com,background=https://jobs.example.com; a "
            "URL has no path, and http:// is accepted for this machine only"
        ),
        meaning=(
            "The URLs of the app's services. With them, Cloud Tasks delivers tasks by HTTP, such as to Cloud Run, and "
            "not to App Engine."
        ),
    ),
    Setting(
        field="service_account",
        variable="DEFERRED_SERVICE_ACCOUNT",
        convert=conversions.email,
        accepts="the e-mail address of a service account",
        meaning=(
            "The service account whose token Cloud Tasks sends with a task, by default that of the process. Without "
            "secret keys, a task with its valid token is trusted, but only if it is named here."
        ),
    ),
    Setting(
        field="audience",
        variable="DEFERRED_AUDIENCE",
        convert=conversions.audience,
        accepts="the audience of a token: a URL, or another text without blanks",
        meaning="The audience of the token that Cloud Tasks sends with a task, by default the URL of its service.",
    ),
    Setting(
        field="default_queues",
        variable="DEFERRED_DEFAULT_QUEUES",
        alias="DEFAULT_QUEUES",
        convert=conversions.queues,
        accepts="queue names ([a-zA-Z0-9-], up to 100 characters each) separated by commas, each once",
        meaning=(
            "The queues for calls without _queue. An unnamed call goes to one of them at random. A named call always "
            "goes to the same one, chosen by a hash of its name, because task names are unique per queue."
        ),
    ),
    Setting(
        field="background_module",
        variable="DEFERRED_BACKGROUND_MODULE",
        alias="BACKGROUND_MODULE",
        convert=conversions.service,
        accepts="the name of a service: [a-z0-9-], up to 63 characters",
        meaning=(
            "The service that runs the tasks enqueued from the default service, at the same version. Tasks of other "
            "services run in their own service."
        ),
    ),
    Setting(
        field="background_version",
        variable="DEFERRED_BACKGROUND_VERSION",
        convert=conversions.version,
        accepts="same, default, or the name of a version: [a-z0-9-], up to 63 characters",
        meaning=(
            "The version of the background module: the version that enqueues the task (same), the module's default "
            "version (default), or the version with this name."
        ),
    ),
    Setting(
        field="warmup_module",
        variable="DEFERRED_WARMUP_MODULE",
        alias="WARMUP_MODULE",
        convert=conversions.module,
        accepts="the dotted name of a module that can be imported",
        meaning="A module that is imported once, before the first payload is decoded.",
    ),
    Setting(
        field="url_prefix",
        variable="DEFERRED_URL_PREFIX",
        convert=conversions.url_prefix,
        accepts="a path such as /_cb/deferred, with a slash at its start and none at its end",
        meaning="The path under which tasks are delivered.",
    ),
    Setting(
        field="legacy_urls",
        variable="DEFERRED_LEGACY_URLS",
        convert=conversions.paths,
        accepts="paths that start with a slash, separated by commas; * at the end of a path stands for any text",
        meaning=(
            "Further paths at which tasks are run, such as /_ah/queue/deferred, or /_ah/queue/deferred* for all paths "
            "that start so. They are for tasks that google.appengine.ext.deferred enqueued before the app moved to "
            "this library."
        ),
    ),
    Setting(
        field="default_url",
        variable="DEFERRED_DEFAULT_URL",
        convert=conversions.path,
        accepts="a path such as /_ah/queue/deferred, outside of the URL prefix",
        meaning=(
            "The path for all calls without _url, in place of the URL prefix with the name of the call. Tasks that are "
            "delivered there are run."
        ),
    ),
    Setting(
        field="secret_keys",
        variable="DEFERRED_SECRET_KEYS",
        convert=keys.parse,
        accepts=f"random texts of at least {keys.MIN_KEY_BYTES} bytes each, newest first, separated by commas",
        meaning=(
            "The keys that prove that a task is the app's own: the first key signs, all keys verify. At least one key "
            "is required everywhere except on App Engine standard."
        ),
        secret=True,
    ),
    Setting(
        field="require_signature",
        variable="DEFERRED_REQUIRE_SIGNATURE",
        convert=conversions.boolean,
        accepts="true or false",
        meaning="Whether a task without a signature is refused on App Engine standard. Elsewhere it is always refused.",
    ),
    Setting(
        field="allowed_callables",
        variable="DEFERRED_ALLOWED_CALLABLES",
        convert=conversions.callables,
        accepts="names such as shop.mail:send, shop.orders:Order.close or shop.jobs:*, separated by commas",
        meaning=(
            "The callables that a task may call. Nothing else is deferred or run, and nothing that a payload names is "
            "imported before its callable is found in the list. module:* stands for the functions that a module "
            "defines itself, without its classes and their methods. Without a list, a task may call anything."
        ),
    ),
    Setting(
        field="pickle_protocol",
        variable="DEFERRED_PICKLE_PROTOCOL",
        convert=conversions.integer(0, pickle.HIGHEST_PROTOCOL),
        accepts=f"a whole number from 0 to {pickle.HIGHEST_PROTOCOL}",
        meaning="The pickle protocol of the payloads that are written. Every protocol can be read.",
    ),
    Setting(
        field="max_payload_bytes",
        variable="DEFERRED_MAX_PAYLOAD_BYTES",
        convert=conversions.integer(1, 2**31),
        accepts="a whole number of bytes, at least 1",
        meaning=(
            "The largest payload. A larger payload is an error at defer(), and a larger request body is refused with "
            f"413. A task with its URL and headers takes at most {protocol.MAX_PUSH_TASK_BYTES} bytes in a queue, "
            "whatever this setting is."
        ),
    ),
    Setting(
        field="enqueue_seconds",
        variable="DEFERRED_ENQUEUE_SECONDS",
        convert=conversions.seconds(0, 600),
        accepts="a number of seconds, 0 to 600",
        meaning=(
            "How long an enqueue is retried after transient errors and time-outs, under a name that is generated once. "
            "0: a single attempt, and the queue chooses the name."
        ),
    ),
    Setting(
        field="sweep_seconds",
        variable="DEFERRED_SWEEP_SECONDS",
        convert=conversions.seconds(1, 600),
        accepts="a number of seconds, 1 to 600",
        meaning=(
            "On Cloud Tasks: how often a process that gets requests looks for transactional tasks that were not sent "
            "after their commit. The task that looks for them runs one and a half to two and a half times as long "
            "after a transactional task, and tasks younger than two thirds of it are left alone."
        ),
    ),
    Setting(
        field="coalesce",
        variable="DEFERRED_COALESCE",
        convert=conversions.boolean,
        accepts="true or false",
        meaning=(
            "Whether the defer_async calls of a request are enqueued together when the app has returned its response. "
            "If the app raises, none of them is enqueued."
        ),
    ),
    Setting(
        field="log_level",
        variable="DEFERRED_LOG_LEVEL",
        convert=conversions.log_level,
        accepts=f"one of {', '.join(conversions.LEVELS)}, or a number",
        meaning="The level of the log line for a task that succeeded.",
    ),
    Setting(
        field="retry_log_level",
        variable="DEFERRED_RETRY_LOG_LEVEL",
        convert=conversions.log_level,
        accepts=f"one of {', '.join(conversions.LEVELS)}, or a number",
        meaning=(
            "The log level for a failed attempt that is going to be retried. An attempt that is known to be the last "
            "(its _retry_options have a task_retry_limit and no task_age_limit) is always an ERROR."
        ),
    ),
    Setting(
        field="log_arguments",
        variable="DEFERRED_LOG_ARGUMENTS",
        convert=conversions.one_of("none", "names", "short"),
        accepts="none, names or short",
        meaning=(
            "How much of a call's arguments is logged when the call fails: nothing, the names, or the values, "
            "shortened. With none and names, a dead letter's payload is not logged either."
        ),
    ),
)


def _keys_of_process() -> tuple[SecretKey, ...]:
    """Return the process's keys: settings made in code that give no keys have the keys of the environment."""
    from deferred_middleware.config import process  # here, because it makes its settings when it is imported

    return process.current_keys()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a process.

    Each field is named as its environment variable, in lower case and without ``DEFERRED_``: ``background_module`` is
    ``DEFERRED_BACKGROUND_MODULE``. The manual's page of settings describes all of them, with their units.

    Raises:
        SettingsError: a value is not accepted.
    """

    engine: Literal["app-engine", "cloud-tasks"] | None = None
    service_urls: ServiceUrls = ()
    service_account: str | None = None
    audience: str | None = None
    default_queues: tuple[str, ...] = ("default",)
    background_module: str | None = None
    background_version: str = SAME_VERSION
    warmup_module: str | None = None
    url_prefix: str = protocol.URL_PREFIX
    legacy_urls: tuple[str, ...] = ()
    default_url: str | None = None
    secret_keys: tuple[SecretKey, ...] = dataclasses.field(default_factory=_keys_of_process, repr=False)
    require_signature: bool = False
    allowed_callables: tuple[str, ...] = ()
    pickle_protocol: int = 5
    max_payload_bytes: int = 10 * 1024 * 1024
    enqueue_seconds: float = 30.0
    sweep_seconds: float = 30.0
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
                raise setting.error(setting.variable, value) from None
            object.__setattr__(self, setting.field, converted)
        if self.service_urls and self.engine != CLOUD_TASKS:
            raise SettingsError(
                "DEFERRED_ENGINE",
                self.engine,
                f"{CLOUD_TASKS} if DEFERRED_SERVICE_URLS is set, because only Cloud Tasks delivers tasks to a URL",
            )
        if self.default_url is not None and f"{self.default_url}/".startswith(f"{self.url_prefix}/"):
            # Below the prefix, a URL names the call that it runs.
            raise SettingsError("DEFERRED_DEFAULT_URL", self.default_url, f"a path outside of {self.url_prefix}")

    @property
    def unnamed_urls(self) -> tuple[str, ...]:
        """The paths of tasks that don't name their calls: the legacy URLs and the default URL."""
        return self.legacy_urls if self.default_url is None else (*self.legacy_urls, self.default_url)

    @property
    def uses_cloud_tasks(self) -> bool:
        """Whether Cloud Tasks is selected: by ``engine``, or else by the SDK's switch, which is read each time."""
        if self.engine is None:
            return os.environ.get(CLOUD_TASKS_VARIABLE, "").lower() == "true"
        return self.engine == CLOUD_TASKS

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the settings from ``environ``, by default from the process's environment.

        Issues a :class:`DeferredWarning` for a variable that looks like a misspelt setting.
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
                    raise setting.error(str(variable), value) from None
                break
        _warn_of_misspelt_variables(environ)
        return cls(**found)


def _warn_of_misspelt_variables(environ: Mapping[str, str]) -> None:
    known = [setting.variable for setting in TABLE]
    for variable in environ:
        if variable.startswith("DEFERRED_") and variable not in known:
            meant = nearest(variable, known, similarity=0.85)
            if meant:
                message = f"{variable} is not a setting of deferred_middleware. Did you mean {meant}?"
                warnings.warn(message, DeferredWarning, stacklevel=4)
