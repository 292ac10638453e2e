"""All app processes of a server: one for each service whose app runs here, started, and stopped, together.

processes = AppProcesses(configs, on_event=events.put, ends=ends)
processes.start()       # what becomes of each is told to on_event
processes.stop()
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from deferred_middleware.server.apps.process import AppProcess, ProcessEvent
from deferred_middleware.server.apps.process_ends import ProcessEnds
from deferred_middleware.server.apps.spawn import AppProcessConfig


class AppProcesses:
    """Keeps the services of ``configs`` running; for the callbacks see :class:`AppProcess`."""

    def __init__(
        self, configs: Iterable[AppProcessConfig], *, on_event: Callable[[ProcessEvent], None], ends: ProcessEnds
    ) -> None:
        self._processes = {config.service: AppProcess(config, on_event=on_event, ends=ends) for config in configs}

    @property
    def services(self) -> set[str]:
        """The names of the services."""
        return set(self._processes)

    def start(self) -> None:
        """Begin."""
        for process in self._processes.values():
            process.start()

    def is_serving(self, service: str) -> bool:
        """Tell whether the process of a service answers, and is not about to be started again."""
        return self._processes[service].is_serving

    def restart(self, service: str) -> None:
        """Have the process of a service started again with its code as it is now."""
        self._processes[service].restart()

    def stop(self) -> None:
        """Ask all to finish what runs, and to end; return when they are gone."""
        for process in self._processes.values():
            process.request_stop()
        for process in self._processes.values():
            process.stop()

    def kill(self) -> None:
        """End all at once."""
        for process in self._processes.values():
            process.kill()
