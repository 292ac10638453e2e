"""The location of Cloud Tasks: the project and region of the app, or the address of an emulator.

The SDK defaults to the region us-central1 and to a project of None (SDK: ``api/taskqueue/cloudtask.py``,
``_get_region``). Here an unknown or contradictory location is an error at ``defer()``.
"""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Final

from deferred_middleware.config import metadata
from deferred_middleware.errors import LocationError, SettingsError
from deferred_middleware.wire.protocol import is_loopback

EMULATOR_VARIABLE: Final = "CLOUD_TASKS_EMULATOR_HOST"
PROJECT_VARIABLE: Final = "GOOGLE_CLOUD_PROJECT"
REGION_VARIABLES: Final = ("LOCATION_ID", "GAE_LOCATION", "GAE_REGION", "REGION_ID")
"""The variables that may name the region, in the SDK's order. If none does, the metadata server is asked."""
FALLBACK_VARIABLE: Final = "LOCAL_GCP_REGION"
_REGION_OF_LOCATION_ID: Final = {"us-central": "us-central1", "europe-west": "europe-west1"}
"""Two locations of App Engine have another name in other services (https://cloud.google.com/appengine/docs/locations).
"""
_PROJECT: Final = re.compile(r"([a-z0-9.-]+:)?[a-z0-9][a-z0-9-]*")
_REGION: Final = re.compile(r"[a-z]+(-[a-z]+)+[0-9]+")
_ADDRESS: Final = re.compile(r"(?P<plain>http://)?(?P<host>\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})/?")


@dataclasses.dataclass(frozen=True, slots=True)
class Location:
    """The location of the app's queues."""

    project: str
    region: str

    def queue_path(self, queue: str) -> str:
        """Return the full name of a queue."""
        return f"projects/{self.project}/locations/{self.region}/queues/{queue}"


def find() -> Location:
    """Return the location that the environment or the metadata server names.

    Raises :class:`LocationError` if it is unknown or contradictory.
    """
    project = _project()
    named = {name: _region_of(os.environ[name]) for name in REGION_VARIABLES if os.environ.get(name)}
    if len(set(named.values())) > 1:
        differing = ", ".join(f"{name} says {region}" for name, region in named.items())
        raise LocationError(REGION_VARIABLES[0], f"the region is doubtful: {differing}")
    variable, region = next(iter(named.items())) if named else _unnamed_region()
    if region is None:
        raise LocationError(
            variable, "the region is not known: neither the environment nor the metadata server names it"
        )
    if not _REGION.fullmatch(region):
        raise LocationError(variable, f"the region is doubtful: {region!r} is no location such as europe-west1")
    return Location(project, region)


def _unnamed_region() -> tuple[str, str | None]:
    """Return the variable to name in an error, and the region that applies if no platform variable names one."""
    if os.environ.get(FALLBACK_VARIABLE):
        return FALLBACK_VARIABLE, _region_of(os.environ[FALLBACK_VARIABLE])
    region = metadata.ask(metadata.REGION)
    return REGION_VARIABLES[0], None if region is None else _region_of(region)


def _project() -> str:
    project = _without_partition(os.environ.get(PROJECT_VARIABLE) or metadata.ask(metadata.PROJECT) or "")
    if not _PROJECT.fullmatch(project):
        problem = f"it is {project!r}" if project else "it is not set"
        raise LocationError(PROJECT_VARIABLE, f"the project is not known: {problem}")
    application = _without_partition(os.environ.get("GAE_APPLICATION", project))
    if application != project:
        raise LocationError(
            PROJECT_VARIABLE,
            f"the project is doubtful: {PROJECT_VARIABLE} is {project!r}, and GAE_APPLICATION {application!r}",
        )
    return project


def _without_partition(project: str) -> str:
    """Return a project without the region before it: ``s~`` or ``e~``, and ``dev~`` on the local server."""
    return project.rpartition("~")[2]


def _region_of(location_id: str) -> str:
    location_id = location_id.strip()
    return _REGION_OF_LOCATION_ID.get(location_id, location_id)


def emulator_address() -> str | None:
    """Return the ``host:port`` of the emulator, or None if tasks go to Google.

    The connection is not encrypted. So the address must be on this machine, unless it begins with ``http://``. Raises
    :class:`SettingsError`.
    """
    value = os.environ.get(EMULATOR_VARIABLE, "").strip()
    if not value:
        return None
    found = _ADDRESS.fullmatch(value)
    if found is None:
        raise SettingsError(EMULATOR_VARIABLE, value, "host:port, such as localhost:8123")
    host = found["host"]
    if not found["plain"] and not is_loopback(host):
        raise SettingsError(
            EMULATOR_VARIABLE,
            value,
            "an address of this machine, because the connection is not encrypted; to use another machine all the same, "
            f"write http://{host}:{found['port']}",
        )
    return f"{host}:{found['port']}"
