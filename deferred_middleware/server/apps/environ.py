"""The environment of an app process: what App Engine sets, and the addresses that the app's SDK needs."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deferred_middleware.errors import ServerError
from deferred_middleware.server.config.data_dir import SECRET_KEYS_VARIABLE
from deferred_middleware.server.config.services import Service
from deferred_middleware.server.store.files import replacing
from deferred_middleware.wire.protocol import is_loopback

_REMOTE_DATASTORE = "entities would go to Google's datastore instead of the local one"
STEERING = {
    # api/taskqueue/taskqueue.py
    "APPENGINE_USE_CLOUDTASK_PUSH_QUEUE": "tasks would go to Google instead of the local server",
    # datastore/datastore_rpc.py
    "DATASTORE_APP_ID": _REMOTE_DATASTORE,
    "DATASTORE_PROJECT_ID": _REMOTE_DATASTORE,
    "DATASTORE_USE_PROJECT_ID_AS_APP_ID": _REMOTE_DATASTORE,
    "DATASTORE_ADDITIONAL_APP_IDS": _REMOTE_DATASTORE,
    # api/mail.py
    "APPENGINE_USE_SMTP_MAIL_SERVICE": "mail would be sent by an SMTP server instead of being logged",
    # api/lib_config.py and api/taskqueue/taskqueue.py
    "SERVER_SOFTWARE": "the SDK would take it for the name of the web server",
}
"""The variables that make the SDK use something else than this server, and what would happen with them.

None of them is passed on to an app. The paths are those of the SDK's modules that read them.
"""
# With these, the SDK would take what one request or task had for that of every request.
_OF_REQUESTS_PREFIX = "HTTP_X_APPENGINE_"
_OF_REQUESTS = "each request would seem to have this header"
_SMTP_HOST_VARIABLE = "APPENGINE_SMTP_HOST"

# Nothing is deployed here. On App Engine, the ID is a number too.
_DEPLOYMENT_ID = "1"
# That of F1, the instance class of a service that names none
# (https://cloud.google.com/appengine/docs/standard#instance_classes).
_MEMORY_MB = "384"

logger: Final = logging.getLogger(__name__)


def base_environ(environ: Mapping[str, str], *, secret_key: str) -> dict[str, str]:
    """Return what app processes inherit from ``environ``, with ``secret_key`` unless it has keys of its own."""
    inherited, left_out = _without_steering(environ)
    for name, consequence in left_out.items():
        logger.warning("%s is not passed on to the app: with it, %s.", name, consequence)
    if not inherited.get(SECRET_KEYS_VARIABLE, "").strip():
        inherited[SECRET_KEYS_VARIABLE] = secret_key
    return inherited


def _without_steering(environ: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the variables without those that steer the SDK elsewhere, and what would happen with each of these."""
    left_out = {}
    for name in environ:
        if name.startswith(_OF_REQUESTS_PREFIX):
            left_out[name] = _OF_REQUESTS
        elif name in STEERING:
            left_out[name] = STEERING[name]
    # A server on this machine, such as one that shows mails in a browser, is no mistake.
    if is_loopback(environ.get(_SMTP_HOST_VARIABLE, "")):
        left_out.pop("APPENGINE_USE_SMTP_MAIL_SERVICE", None)
    return {name: value for name, value in environ.items() if name not in left_out}, left_out


@dataclass(frozen=True, kw_only=True)
class Platform:
    """What all services know about the server they run on.

    ``inherited`` comes from :func:`base_environ`. At ``api_address`` the queue process answers the SDK, and at
    ``cloud_tasks``, ``host:port``, clients of Cloud Tasks; the queues of ``queue.yaml`` are in ``location``.
    """

    project: str
    app_id: str
    default_hostname: str
    api_address: tuple[str, int]
    inherited: Mapping[str, str]
    cloud_tasks: str = ""
    location: str = ""

    @property
    def of_cloud_tasks(self) -> dict[str, str]:
        """The variables with which a client of Cloud Tasks finds this server."""
        if not self.cloud_tasks:
            return {}
        return {"CLOUD_TASKS_EMULATOR_HOST": self.cloud_tasks, "LOCAL_GCP_REGION": self.location}


def app_environ(
    platform: Platform,
    service: Service,
    *,
    api_ticket: str,
    env_variables: Mapping[str, str] | None = None,
    source: object = None,
) -> dict[str, str]:
    """Return the environment of an app process: what it inherits, ``env_variables``, and what App Engine sets.

    Later ones win. If one of ``env_variables`` is overridden, a warning names their ``source``.

    Source: https://cloud.google.com/appengine/docs/standard/python3/runtime#environment_variables, and for the last
    four the SDK's ``runtime/default_api_stub.py``.
    """
    set_here = {
        "GAE_ENV": "localdev",
        "GAE_SERVICE": service.name,
        "GAE_VERSION": service.version,
        "GAE_INSTANCE": f"{service.id}-0",
        "GAE_DEPLOYMENT_ID": _DEPLOYMENT_ID,
        "GAE_MEMORY_MB": _MEMORY_MB,
        "PORT": str(service.port),
        "GAE_RUNTIME": f"python3{sys.version_info.minor}",
        "GAE_APPLICATION": platform.app_id,
        "APPLICATION_ID": platform.app_id,
        "GOOGLE_CLOUD_PROJECT": platform.project,
        "PYTHONUNBUFFERED": "1",
        "DEFAULT_VERSION_HOSTNAME": platform.default_hostname,
        "API_HOST": platform.api_address[0],
        "API_PORT": str(platform.api_address[1]),
        "HTTP_X_APPENGINE_API_TICKET": api_ticket,
        **platform.of_cloud_tasks,
    }
    given = {name: value for name, value in (env_variables or {}).items() if name not in set_here}
    own, left_out = _without_steering(given)
    for name, consequence in left_out.items():
        logger.warning("%s sets %s, which is not passed on: with it, %s.", source, name, consequence)
    if not own.get(SECRET_KEYS_VARIABLE, "").strip():
        own.pop(SECRET_KEYS_VARIABLE, None)
    for name, value in own.items():
        _check_encodable(name, value, source)
    for name in sorted(set_here.keys() & (env_variables or {}).keys()):
        if (env_variables or {})[name] != set_here[name]:
            logger.warning("%s sets %s; the local server's own value is used instead.", source, name)
    return {**platform.inherited, **own, **set_here}


def _check_encodable(name: str, value: str, source: object) -> None:
    """Raise :class:`ServerError` if a variable can't be in the environment of a process."""
    try:
        os.fsencode(name + value)
    except UnicodeEncodeError as error:
        raise ServerError(
            f"{source}: environment variable {ascii(name)[1:-1]} can't be set, because the locale's encoding "
            f"({error.encoding}) has no {error.object[error.start]!a}; use a UTF-8 locale, such as LC_ALL=C.UTF-8."
        ) from error
    if "\0" in name + value or not name or "=" in name:
        raise ServerError(
            f"{source}: environment variable {name!r} can't be set: it has '=' in its name, no name, or a null byte."
        )


def external_environ(platform: Platform, service: Service, *, api_ticket: str) -> dict[str, str]:
    """Return what an app that runs elsewhere needs in its environment, and nothing more.

    With the first three its SDK calls this server. Without the keys the app would refuse every task. Without the
    hostname the SDK drops a task's target. The application is part of entities' keys and of signatures, and the service
    and the version are parts of tasks' targets.
    """
    return {
        "API_HOST": platform.api_address[0],
        "API_PORT": str(platform.api_address[1]),
        "HTTP_X_APPENGINE_API_TICKET": api_ticket,
        SECRET_KEYS_VARIABLE: platform.inherited[SECRET_KEYS_VARIABLE],
        "DEFAULT_VERSION_HOSTNAME": platform.default_hostname,
        "GAE_APPLICATION": platform.app_id,
        "GAE_SERVICE": service.name,
        "GAE_VERSION": service.version,
        **platform.of_cloud_tasks,
    }


def environ_file(data_dir: Path, service: str) -> Path:
    """Return the path of the file with the environment that an app running elsewhere needs."""
    return data_dir / f"{service}.env"


def exports(environ: Mapping[str, str]) -> str:
    """Return the shell command that exports the variables."""
    return "export " + " ".join(f"{name}={shlex.quote(value)}" for name, value in environ.items())


def write_environ_file(path: Path, environ: Mapping[str, str]) -> None:
    """Write the file that a shell reads to export the variables. Only the current user can read it."""
    try:
        with replacing(path, mode=0o600, durable=False) as stream:
            stream.write(f"{exports(environ)}\n".encode())
    except OSError as error:
        raise ServerError(f"{path} can't be written: {error.strerror}.") from error
