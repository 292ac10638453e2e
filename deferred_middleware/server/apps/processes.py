"""All app processes of a server: one for each service whose app runs here."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from deferred_middleware.server.apps.process import AppProcess, Deliveries, ProcessEvent, ProcessStatus
from deferred_middleware.server.apps.spawn import AppProcessConfig


class AppProcesses:
    """Keeps the services of ``configs`` running.

    For ``on_event`` see :class:`AppProcess`; ``deliveries`` returns a service's.
    """

    def __init__(
        self,
        configs: Iterable[AppProcessConfig],
        *,
        on_event: Callable[[ProcessEvent], None],
        deliveries: Callable[[str], Deliveries],
    ) -> None:
        self._processes = {
            config.service: AppProcess(config, on_event=on_event, deliveries=deliveries(config.service))
            for config in configs
        }

    @property
    def services(self) -> set[str]:
        """The names of the services."""
        return set(self._processes)

    def start(self) -> None:
        """Start the processes."""
        for process in self._processes.values():
            process.start()

    def is_serving(self, service: str) -> bool:
        """Tell whether the process of a service serves requests and is not about to be restarted."""
        return self._processes[service].is_serving

    def status(self, service: str) -> ProcessStatus | None:
        """Return how the process of a service stands; None if its app runs elsewhere."""
        process = self._processes.get(service)
        return None if process is None else process.status

    def restart(self, service: str) -> None:
        """Restart the process of a service with the code as it is now."""
        self._processes[service].restart()

    def stop(self) -> None:
        """Ask all processes to finish their requests and to end; return when they have ended."""
        for process in self._processes.values():
            process.request_stop()
        for process in self._processes.values():
            process.stop()

    def kill(self) -> None:
        """Kill all processes."""
        for process in self._processes.values():
            process.kill()
