"""The process-wide state: settings, secret keys, deployment and hooks.

No other module of the package keeps configuration. The settings and the deployment are read once, when the package is
imported, in the importing thread: the SDK's ``wrap_wsgi_app`` later replaces ``os.environ`` by a request-local mapping,
which is empty in other threads (SDK: ``runtime/request_environment.py``).
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from deferred_middleware.config import keys, metadata
from deferred_middleware.config.hooks import Hooks
from deferred_middleware.config.keys import SecretKey
from deferred_middleware.config.service_urls import own_service
from deferred_middleware.config.settings import Settings
from deferred_middleware.errors import LocationError, SettingsError

if TYPE_CHECKING:
    from deferred_middleware.wire.signature import Keyring


PYTEST_PLUGIN: Final = "_deferred_middleware_pytest"
"""The module of the pytest plugin. It doesn't import the package, and an app that is tested may need a key."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deployment:
    """The service and version of the app that this process is, and where it runs; None where the platform sets none.

    The platform sets ``GAE_SERVICE``, ``GAE_VERSION``, ``GAE_APPLICATION`` and ``GAE_ENV``
    (https://cloud.google.com/appengine/docs/standard/python3/runtime#environment_variables).
    """

    service: str | None = None
    version: str | None = None
    application: str = ""
    """The ID of the app (the project), without the region that the platform puts before it; empty if not known."""
    environment: str | None = None
    """``standard`` on App Engine standard, ``localdev`` on the local server.

    :meth:`from_environ` believes ``GAE_ENV=standard`` only if the platform's other variables are set too.
    """
    cloud_run_service: str | None = None
    """The name of the Cloud Run service that this process belongs to (``K_SERVICE``)."""

    @property
    def on_app_engine_standard(self) -> bool:
        """Whether the platform removes the task queue's headers from requests that others send."""
        return self.environment == "standard"

    @property
    def on_local_server(self) -> bool:
        """Whether ``deferred-middleware serve`` runs this process."""
        return self.environment == "localdev"

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Deployment:
        """Read the deployment from ``environ``, by default from the process's environment."""
        if environ is None:
            environ = os.environ
        names = ("GAE_APPLICATION", "APPLICATION_ID", "GOOGLE_CLOUD_PROJECT")
        environment = environ.get("GAE_ENV") or None
        if environment == "standard" and not _is_app_engine_standard(environ):
            environment = None
        application = next((environ[name] for name in names if environ.get(name)), "")
        cloud_run_service = environ.get("K_SERVICE") or None
        revision = environ.get("K_REVISION") if cloud_run_service else None
        return cls(
            service=environ.get("GAE_SERVICE") or None,
            version=environ.get("GAE_VERSION") or revision or None,
            # As in s~project, or e~project in Europe.
            application=application.rpartition("~")[2],
            environment=environment,
            cloud_run_service=cloud_run_service,
        )

    def named_by(self, settings: Settings) -> Deployment:
        """Return the deployment with the name that ``DEFERRED_SERVICE_URLS`` has for its service."""
        if not settings.service_urls:
            return self
        service = own_service(settings.service_urls, self.service, self.cloud_run_service)
        return self if service == self.service else dataclasses.replace(self, service=service)


_SET_BY_APP_ENGINE: Final = ("GAE_APPLICATION", "GAE_SERVICE", "GAE_VERSION", "GAE_INSTANCE")


def _is_app_engine_standard(environ: Mapping[str, str]) -> bool:
    """Tell whether ``environ`` is that of an instance on App Engine standard, where ``GAE_ENV`` is ``standard``.

    One variable is copied easily, into a Dockerfile or a shell. Cloud Run sets ``K_SERVICE``
    (https://cloud.google.com/run/docs/container-contract#env-vars), App Engine standard does not.
    """
    return all(environ.get(name) for name in _SET_BY_APP_ENGINE) and not environ.get("K_SERVICE")


_keys: tuple[SecretKey, ...] = ()


def current_keys() -> tuple[SecretKey, ...]:
    """Return the process's secret keys, newest first."""
    return _keys


def install_keys(keys: tuple[SecretKey, ...]) -> None:
    """Make ``keys`` the process's."""
    global _keys
    _keys = keys


# The script of an app process of the local server.
_APP_PROCESS_SCRIPT = "/deferred_middleware/server/apps/entry.py"


def _is_our_command(arguments: Sequence[str]) -> bool:
    """Tell whether a process with these arguments is the ``deferred-middleware`` command, or was started by it."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument == "-m":
            return following.partition(".")[0] == "deferred_middleware"
        if os.path.basename(argument) == "deferred-middleware" or argument.endswith(_APP_PROCESS_SCRIPT):
            return True
    return False


def _read_settings() -> Settings | SettingsError:
    """Read the settings from the environment.

    In a process of our own command a wrong value is returned, not raised: the command itself needs no settings, and
    reports what stops the app in one sentence. There the error is raised when the app asks for the settings.
    """
    try:
        settings = Settings.from_environ()
    except SettingsError as error:
        if _is_our_command(sys.orig_argv):
            return error
        raise
    install_keys(settings.secret_keys)
    return settings


_settings = _read_settings()
_deployment = Deployment.from_environ()
if isinstance(_settings, Settings):
    _deployment = _deployment.named_by(_settings)
_hooks = Hooks()


def current_process() -> tuple[Settings, Deployment, Hooks]:
    """Return the process's settings, deployment and hooks. Raises :class:`SettingsError` as current_settings()."""
    return current_settings(), _deployment, _hooks


def current_settings() -> Settings:
    """Return the process's settings. Raises :class:`SettingsError` if they could not be read."""
    if isinstance(_settings, SettingsError):
        raise _settings
    return _settings


def install_settings(settings: Settings) -> None:
    """Make ``settings`` the process's, so that enqueueing and execution use the same ones."""
    global _settings, _deployment
    _settings = settings
    _deployment = _deployment.named_by(settings)


def current_deployment() -> Deployment:
    """Return the process's deployment, as it was when the package was imported."""
    return _deployment


def keyring_of(settings: Settings, deployment: Deployment) -> Keyring:
    """Return the keyring of the process, which is empty without secret keys. Raises :class:`LocationError`."""
    from deferred_middleware.wire.signature import keyring_for  # here, because importing the package needs no keyring

    keys = settings.secret_keys
    return keyring_for(keys, application_of(deployment) if keys else "")


def application_of(deployment: Deployment) -> str:
    """Return the ID of the app (the project), which signatures name; empty if it is not known.

    On Cloud Run no variable has it, so the metadata server is asked. Raises :class:`LocationError` if it does not
    answer: without the project, the process would refuse the tasks of all others.
    """
    if deployment.application or deployment.cloud_run_service is None:
        return deployment.application
    project = metadata.ask(metadata.PROJECT)
    if project is None:
        raise LocationError("GOOGLE_CLOUD_PROJECT", "the project is not known: the metadata server does not answer")
    return project


def current_hooks() -> Hooks:
    """Return the process's hooks: those of the last :class:`~deferred_middleware.DeferredMiddleware` made with some."""
    return _hooks


def install_hooks(hooks: Hooks) -> None:
    """Make ``hooks`` the process's, so that enqueueing and execution call the same ones."""
    global _hooks
    _hooks = hooks


def make_key_for_tests() -> None:
    """Make a random key for a process that needs a key and has none, so that an app can be tested without settings.

    Nobody knows the key, so it is as safe as any other.
    """
    if not _keys and not _deployment.on_app_engine_standard:
        install_keys((keys.make(),))
        install_settings(dataclasses.replace(current_settings(), secret_keys=_keys))


if PYTEST_PLUGIN in sys.modules:
    make_key_for_tests()
