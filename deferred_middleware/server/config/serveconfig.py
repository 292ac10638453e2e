"""What ``deferred-middleware serve`` is to serve, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deferred_middleware.server.apps.spawn import START_TIMEOUT_SECONDS
from deferred_middleware.server.config.served import Served

LOOPBACK = "127.0.0.1"
DEFAULT_PROJECT = "local-app"


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """The services, where they listen, and where tasks are kept: a directory that is locked already."""

    served: Served
    host: str = LOOPBACK
    port: int = 8080
    admin_host: str = LOOPBACK
    admin_port: int = 8000
    allowed_hosts: Sequence[str] = ()
    data_dir: Path = Path(".deferred")
    threads: int = 8
    tombstone_days: float = 9.0
    history_days: float = 7.0
    history_tasks: int = 10_000
    queue_yaml: Path | None = None
    ready_file: Path | None = None
    reload: bool = False
    start_timeout_seconds: float = START_TIMEOUT_SECONDS
