"""The queues as the API sees them: those of ``queue.yaml``, and those that clients have made.

What a client says of a queue is saved in the store before it is answered, and holds until the entry of that queue in
``queue.yaml`` changes.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf import json_format

from deferred_middleware.server.cloud_tasks import call_errors
from deferred_middleware.server.cloud_tasks.calls.queue_messages import Queue, config_of, fill_defaults, queue_of
from deferred_middleware.server.cloud_tasks.names import QueuePath, StoreNames
from deferred_middleware.server.config.queues import QueueConfig, QueueRegistry
from deferred_middleware.server.store.saved.queues import SavedQueue
from deferred_middleware.server.store.store import TaskStore

NAME_TAKEN_SECONDS: Final = 7 * 24 * 3600.0
"""How long the name of a deleted queue can't be used
(https://cloud.google.com/tasks/docs/deleting-appengine-queues-and-tasks)."""

_RUNNING, _PAUSED = Queue.State.Value("RUNNING"), Queue.State.Value("PAUSED")


@dataclass(frozen=True, kw_only=True)
class FoundQueue:
    """A queue that takes tasks: its full name, the store's name of it, and its configuration."""

    path: QueuePath
    name: str
    config: QueueConfig


class CloudQueues:
    """Finds, makes, changes and deletes queues of ``registry``; they are saved in ``store``. For any thread."""

    def __init__(self, store: TaskStore, registry: QueueRegistry, names: StoreNames) -> None:
        self.names = names
        self._store = store
        self._registry = registry
        # Guards _saved, and makes each change of a queue one step.
        self._lock = threading.RLock()
        self._saved: dict[str, SavedQueue] = {}
        self._messages: dict[str, Any] = {}
        self._load()
        registry.on_change(self._registry_changed)

    def find(self, path: QueuePath) -> FoundQueue:
        """Return a queue. Raises :class:`~.call_errors.ApiCallError` if there is none that the API shows."""
        name = self.names.of(path)
        config = self._registry.get(name)
        if config is None or config.mode != "push":
            raise call_errors.no_queue()
        return FoundQueue(path=path, name=name, config=config)

    def all_in(self, parent: str) -> list[FoundQueue]:
        """Return the queues of a location, by their IDs."""
        found = []
        for name, config in list(self._registry.items()):
            path = self.names.path_of(name)
            if path is not None and path.parent == parent and config.mode == "push":
                found.append(FoundQueue(path=path, name=name, config=config))
        return sorted(found, key=lambda queue: queue.path.queue)

    def locations(self, project: str) -> list[str]:
        """Return the locations in which a project has queues."""
        paths = [self.names.path_of(name) for name in list(self._registry)]
        return sorted({path.location for path in paths if path is not None and path.project == project})

    def message(self, queue: FoundQueue) -> Any:
        """Return a queue as the API shows it."""
        shown = Queue()
        shown.CopyFrom(self._settings(queue.name) or queue_of(queue.config))
        shown.name = queue.path.name
        paused = queue.config.paused or queue.name in self._store.operations.paused()
        shown.state = _PAUSED if paused else _RUNNING
        saved = self._saved.get(queue.name)
        if saved is not None and saved.purged_usec is not None:
            shown.purge_time.FromMicroseconds(saved.purged_usec)
        return shown

    def create(self, path: QueuePath, settings: Any) -> FoundQueue:
        """Make a queue. Raises :class:`~.call_errors.ApiCallError` if its name is taken."""
        name = self.names.of(path)
        with self._lock:
            if name in self._registry:
                raise call_errors.queue_exists()
            saved = self._saved.get(name)
            if saved is not None and (saved.deleted_until_usec or 0) > self._store.saved_queues.now_usec():
                raise call_errors.queue_was_deleted()
            return self._save(path, name, settings)

    def change(self, path: QueuePath, settings: Any) -> FoundQueue:
        """Change the settings of a queue."""
        with self._lock:
            return self._save(path, self.names.of(path), settings)

    def delete(self, queue: FoundQueue) -> None:
        """Delete a queue with its tasks."""
        with self._lock:
            replaced = self._listed(queue.name)
            self._store.saved_queues.delete(queue.name, replaced, NAME_TAKEN_SECONDS)
            self._reload(queue.name)
            self._registry.override(queue.name, None)
        # Only now no further task is added.
        self._store.operations.purge(queue.name)
        self._store.operations.delete_failed(queue.name)
        self._store.operations.resume(queue.name)

    def purge(self, queue: FoundQueue) -> None:
        """Delete the tasks of a queue that it has now."""
        with self._lock:
            self._store.saved_queues.purged(queue.name)
            self._reload(queue.name)
        self._store.operations.purge(queue.name)

    def reset(self) -> None:
        """Forget what clients have said of queues."""
        with self._lock:
            self._store.saved_queues.forget()
            self._saved, self._messages = {}, {}
            for name in self._registry.overridden:
                self._registry.drop_override(name)

    def http_target(self, name: str) -> Any | None:
        """Return what a queue, given by the store's name, overrides in its HTTP requests; None if nothing."""
        settings = self._messages.get(name)
        return settings.http_target if settings is not None and settings.HasField("http_target") else None

    def _settings(self, name: str) -> Any | None:
        return self._messages.get(name)

    def _save(self, path: QueuePath, name: str, settings: Any) -> FoundQueue:
        kept = Queue()
        kept.CopyFrom(settings)
        for field in ("name", "state", "purge_time"):
            kept.ClearField(field)
        fill_defaults(kept)
        self._store.saved_queues.save(name, json_format.MessageToJson(kept, indent=None), self._listed(name))
        self._reload(name)
        config = config_of(kept, name)
        self._registry.override(name, config)
        return FoundQueue(path=path, name=name, config=config)

    def _load(self) -> None:
        for name, saved in self._store.saved_queues.all().items():
            if saved.settings is None and saved.deleted_until_usec is None:
                self._saved[name] = saved
            elif saved.replaced != self._listed(name):
                # queue.yaml has another entry now.
                self._store.saved_queues.forget(name)
            else:
                self._keep(name, saved)
                settings = self._messages.get(name)
                self._registry.override(name, None if settings is None else config_of(settings, name))

    def _reload(self, name: str) -> None:
        self._keep(name, self._store.saved_queues.all()[name])

    def _keep(self, name: str, saved: SavedQueue) -> None:
        messages = {other: message for other, message in self._messages.items() if other != name}
        if saved.settings is not None:
            messages[name] = json_format.Parse(saved.settings, Queue())
        self._saved = {**self._saved, name: saved}
        self._messages = messages

    def _listed(self, name: str) -> str | None:
        """Return the entry of ``queue.yaml`` as text."""
        listed = self._registry.listed(name)
        return None if listed is None else json.dumps(dataclasses.asdict(listed), sort_keys=True)

    def _registry_changed(self) -> None:
        """Forget what was said of queues whose entry in ``queue.yaml`` has changed."""
        with self._lock:
            overridden = self._registry.overridden
            for name, saved in list(self._saved.items()):
                is_override = saved.settings is not None or saved.deleted_until_usec is not None
                if is_override and name not in overridden and saved.replaced != self._listed(name):
                    self._store.saved_queues.forget(name)
                    self._saved = {other: one for other, one in self._saved.items() if other != name}
                    self._messages = {other: one for other, one in self._messages.items() if other != name}
