"""The environment of an app process: what App Engine sets, and what leads the app's SDK to the local server."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping

from deferred_middleware.server.secretkey import SECRET_KEYS_VARIABLE

# With it the SDK would send tasks to Google instead of here (api/taskqueue/taskqueue.py).
_CLOUD_TASKS_VARIABLE = "APPENGINE_USE_CLOUDTASK_PUSH_QUEUE"

_logger = logging.getLogger(__name__)


def base_environ(environ: Mapping[str, str], *, secret_key: str) -> dict[str, str]:
    """Return what app processes inherit of this process's environment, with the key that tasks are signed with.

    An environment that has keys of its own keeps them.
    """
    inherited = dict(environ)
    if inherited.pop(_CLOUD_TASKS_VARIABLE, None) is not None:
        _logger.warning(
            "%s is not passed on to the app: with it, tasks would go to Google instead of here.", _CLOUD_TASKS_VARIABLE
        )
    if not inherited.get(SECRET_KEYS_VARIABLE, "").strip():
        inherited[SECRET_KEYS_VARIABLE] = secret_key
    return inherited


def app_environ(
    base: Mapping[str, str],
    *,
    service: str,
    version: str,
    instance: str,
    project: str,
    app_id: str,
    default_hostname: str,
    api_address: tuple[str, int],
    api_ticket: str,
    env_variables: Mapping[str, str] | None = None,
    source: object = None,
) -> dict[str, str]:
    """Return the environment of an app process: ``base``, ``env_variables``, and what App Engine sets.

    Of the same name the latter wins, and where ``env_variables`` had something else it is said that ``source`` did.
    Source: https://cloud.google.com/appengine/docs/standard/python3/runtime#environment_variables, and for the last
    four the SDK's ``runtime/default_api_stub.py``.
    """
    platform = {
        "GAE_ENV": "localdev",
        "GAE_SERVICE": service,
        "GAE_VERSION": version,
        "GAE_INSTANCE": instance,
        "GAE_RUNTIME": f"python3{sys.version_info.minor}",
        "GAE_APPLICATION": app_id,
        "APPLICATION_ID": app_id,
        "GOOGLE_CLOUD_PROJECT": project,
        "PYTHONUNBUFFERED": "1",
        "DEFAULT_VERSION_HOSTNAME": default_hostname,
        "API_HOST": api_address[0],
        "API_PORT": str(api_address[1]),
        "HTTP_X_APPENGINE_API_TICKET": api_ticket,
    }
    own = dict(env_variables or {})
    if not own.get(SECRET_KEYS_VARIABLE, "").strip():
        own.pop(SECRET_KEYS_VARIABLE, None)
    if own.pop(_CLOUD_TASKS_VARIABLE, None) is not None:
        _logger.warning(
            "%s sets %s, which is not passed on: with it, tasks would go to Google instead of here.",
            source,
            _CLOUD_TASKS_VARIABLE,
        )
    for name in sorted(platform.keys() & own.keys()):
        if own[name] != platform[name]:
            _logger.warning("%s sets %s, which the local server sets itself, to %r.", source, name, platform[name])
    return {**base, **own, **platform}
