"""All app processes of a server."""

from __future__ import annotations

import os
import queue
import socket
from collections.abc import Callable
from pathlib import Path

import deferred_middleware
from deferred_middleware.server.apps.process import ProcessEvent, ProcessReady
from deferred_middleware.server.apps.processes import AppProcesses
from deferred_middleware.server.apps.spawn import AppProcessConfig
from deferred_middleware.server.delivery.attempt_result import ProcessEnd
from deferred_middleware.server.delivery.channel_socket import ChannelSocket

APP = """
def app(environ, start_response):
    start_response("200 OK", [])
    return []
"""


class Ends:
    """Notes the processes of one service."""

    def __init__(self) -> None:
        self.served: list[ChannelSocket] = []
        self.ended: list[ProcessEnd] = []

    def process_serves(self, channel: ChannelSocket, kill: Callable[[str], None]) -> None:
        """Note a process."""
        self.served.append(channel)

    def process_ended(self, channel: ChannelSocket, end: ProcessEnd) -> None:
        """Note its end."""
        assert channel in self.served
        channel.close()
        self.ended.append(end)


def test_each_service_has_its_own_process_and_deliveries(tmp_path: Path) -> None:
    """Each service is started and stopped; who delivers to it gets its channel and its end."""
    (tmp_path / "served.py").write_text(APP)
    events: queue.SimpleQueue[ProcessEvent] = queue.SimpleQueue()
    ends = {"default": Ends(), "background": Ends()}
    environ = {**os.environ, "PYTHONPATH": str(Path(deferred_middleware.__file__).parents[1])}
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        configs = [
            AppProcessConfig(
                app="served:app",
                directory=tmp_path,
                service=service,
                threads=4,
                concurrency=2,
                listener=listener,
                environ=environ,
                delivery_token="token",
                api_ticket="ticket",
                default_hostname="127.0.0.1:1",
            )
            for service, listener in zip(ends, (one, two), strict=True)
        ]
        processes = AppProcesses(configs, on_event=events.put, deliveries=lambda service: ends[service])
        assert processes.services == {"default", "background"}
        processes.start()
        ready = {event.service for _ in ends if isinstance(event := events.get(timeout=30), ProcessReady)}
        assert ready == {"default", "background"}
        assert processes.is_serving("default")
        assert processes.status("elsewhere") is None
        processes.stop()
    assert [[end.service for end in one.ended] for one in ends.values()] == [["default"], ["background"]]
    assert all(end.intended for one in ends.values() for end in one.ended)
