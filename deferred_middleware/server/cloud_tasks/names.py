"""The names of the API's resources, and what the store calls a queue.

    path = QueuePath.parse("projects/my-project/locations/europe-west1/queues/mail")
    StoreNames(Home(project="my-project", location="europe-west1")).of(path)     # "mail"
    StoreNames(None).of(path)                                                    # "mail@europe-west1.my-project"

The rules: https://cloud.google.com/tasks/docs/reference/rpc/google.cloud.tasks.v2#task ("name"). A client that calls
over REST may percent-encode a part of a name; the REST side decodes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from deferred_middleware.server.cloud_tasks import call_errors
from deferred_middleware.wire.protocol import QUEUE_NAME_PATTERN, TASK_NAME_PATTERN

DEFAULT_LOCATION: Final = "us-central1"
"""The location of queues that name none, and the one that the SDK falls back to."""

# https://cloud.google.com/appengine/docs/locations : two locations have another name in other services.
_REGION_VARIABLES: Final = ("LOCATION_ID", "GAE_LOCATION", "GAE_REGION", "REGION_ID", "LOCAL_GCP_REGION")
_REGION_OF_LOCATION: Final = {"us-central": "us-central1", "europe-west": "europe-west1"}

_PROJECT: Final = r"projects/(?P<project>[A-Za-z0-9:.-]+)"
_LOCATION: Final = rf"{_PROJECT}/locations/(?P<location>[A-Za-z0-9-]+)"
_LOCATION_NAME: Final = re.compile(_LOCATION)
_QUEUE_NAME: Final = re.compile(rf"{_LOCATION}/queues/(?P<queue>[^/]*)", re.DOTALL)
_TASK_NAME: Final = re.compile(rf"{_LOCATION}/queues/(?P<queue>[^/]*)/tasks/(?P<task>[^/]*)", re.DOTALL)
_HAS_LETTER: Final = re.compile("[A-Za-z]")
_LONGEST_PART: Final = 256


@dataclass(frozen=True, kw_only=True)
class Home:
    """The project and the location of the App Engine app that this server runs."""

    project: str
    location: str

    @property
    def name(self) -> str:
        """The full name of the location."""
        return f"projects/{self.project}/locations/{self.location}"


@dataclass(frozen=True, kw_only=True)
class QueuePath:
    """The full name of a queue."""

    project: str
    location: str
    queue: str

    @property
    def name(self) -> str:
        """The name as clients write it."""
        return f"{self.parent}/queues/{self.queue}"

    @property
    def parent(self) -> str:
        """The name of the location."""
        return f"projects/{self.project}/locations/{self.location}"

    def task(self, task_id: str) -> str:
        """Return the full name of a task."""
        return f"{self.name}/tasks/{task_id}"

    @classmethod
    def parse(cls, name: str) -> QueuePath:
        """Read the name of a queue. Raises :class:`~.call_errors.ApiCallError` if it is none."""
        found = _QUEUE_NAME.fullmatch(name)
        if found is None:
            raise call_errors.malformed_queue_name()
        return cls._checked(found)

    @classmethod
    def _checked(cls, found: re.Match[str]) -> QueuePath:
        _check_location(found["project"], found["location"])
        if not QUEUE_NAME_PATTERN.fullmatch(found["queue"]):
            raise call_errors.illegal_queue_id(found["queue"])
        return cls(project=found["project"], location=found["location"], queue=found["queue"])


def parse_task_name(name: str) -> tuple[QueuePath, str]:
    """Return the queue and the ID in the name of a task. Raises :class:`~.call_errors.ApiCallError` if it is none."""
    found = _TASK_NAME.fullmatch(name)
    if found is None:
        raise call_errors.malformed_task_name()
    path = QueuePath._checked(found)
    if not TASK_NAME_PATTERN.fullmatch(found["task"]):
        raise call_errors.illegal_task_id(found["task"])
    return path, found["task"]


def parse_location(name: str) -> Home:
    """Read the name of a location. Raises :class:`~.call_errors.ApiCallError` if it is none."""
    found = _LOCATION_NAME.fullmatch(name)
    if found is None:
        raise call_errors.malformed_resource()
    _check_location(found["project"], found["location"])
    return Home(project=found["project"], location=found["location"])


def _check_location(project: str, location: str) -> None:
    if len(project) > _LONGEST_PART or len(location) > _LONGEST_PART:
        raise call_errors.malformed_resource()
    # "-" means all locations in other services, not in this one.
    if not _HAS_LETTER.search(location):
        raise call_errors.illegal_location(location)


def location_of(environ: Mapping[str, str]) -> str:
    """Return the region of the app's queues: that of the environment, as the library finds it, or the SDK's default."""
    named = next((environ[name].strip() for name in _REGION_VARIABLES if environ.get(name, "").strip()), "")
    return _REGION_OF_LOCATION.get(named, named) or DEFAULT_LOCATION


class StoreNames:
    """What the store calls queues: those at ``home`` by their IDs, others ``QUEUE@LOCATION.PROJECT``."""

    def __init__(self, home: Home | None) -> None:
        self._home = home

    def of(self, path: QueuePath) -> str:
        """Return the store's name of a queue."""
        if self._home is not None and (path.project, path.location) == (self._home.project, self._home.location):
            return path.queue
        return f"{path.queue}@{path.location}.{path.project}"

    def path_of(self, name: str) -> QueuePath | None:
        """Return the full name of a queue that the store calls ``name``; None if no client can see it."""
        queue, mark, rest = name.partition("@")
        if mark:
            location, _, project = rest.partition(".")
            return QueuePath(project=project, location=location, queue=queue)
        if self._home is None:
            return None
        return QueuePath(project=self._home.project, location=self._home.location, queue=queue)
