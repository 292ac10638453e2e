"""The environment of an app process: what App Engine sets, and the addresses that the app's SDK needs."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deferred_middleware.errors import ServerError
from deferred_middleware.server.config.data_dir import SECRET_KEYS_VARIABLE
from deferred_middleware.server.config.services import Service
from deferred_middleware.server.store.files import replacing

# If it is set, the SDK sends tasks to Google instead of the local server (api/taskqueue/taskqueue.py).
_CLOUD_TASKS_VARIABLE = "APPENGINE_USE_CLOUDTASK_PUSH_QUEUE"

# Nothing is deployed here. On App Engine, the ID is a number too.
_DEPLOYMENT_ID = "1"
# That of F1, the instance class of a service that names none
# (https://cloud.google.com/appengine/docs/standard#instance_classes).
_MEMORY_MB = "384"

logger = logging.getLogger(__name__)


def base_environ(environ: Mapping[str, str], *, secret_key: str) -> dict[str, str]:
    """Return what app processes inherit from ``environ``, with ``secret_key`` unless it has keys of its own."""
    inherited = dict(environ)
    if inherited.pop(_CLOUD_TASKS_VARIABLE, None) is not None:
        logger.warning(
            "%s is not passed on to the app: with it, tasks would go to Google instead of the local server.",
            _CLOUD_TASKS_VARIABLE,
        )
    if not inherited.get(SECRET_KEYS_VARIABLE, "").strip():
        inherited[SECRET_KEYS_VARIABLE] = secret_key
    return inherited


@dataclass(frozen=True, kw_only=True)
class Platform:
    """What all services know about the server they run on.

    ``inherited`` comes from :func:`base_environ`. At ``api_address`` the queue process answers the SDK.
    """

    project: str
    app_id: str
    default_hostname: str
    api_address: tuple[str, int]
    inherited: Mapping[str, str]


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
    }
    own = dict(env_variables or {})
    if not own.get(SECRET_KEYS_VARIABLE, "").strip():
        own.pop(SECRET_KEYS_VARIABLE, None)
    if own.pop(_CLOUD_TASKS_VARIABLE, None) is not None:
        logger.warning(
            "%s sets %s, which is not passed on: with it, tasks would go to Google instead of the local server.",
            source,
            _CLOUD_TASKS_VARIABLE,
        )
    for name, value in own.items():
        _check_encodable(name, value, source)
    for name in sorted(set_here.keys() & own.keys()):
        if own[name] != set_here[name]:
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
