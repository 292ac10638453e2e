"""All reports of a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from deferred_middleware.server.admin.operations import Operations
from deferred_middleware.server.admin.reports.cron import CronReports, SendCron
from deferred_middleware.server.admin.reports.failures import FailureReports
from deferred_middleware.server.admin.reports.figures import FigureReports
from deferred_middleware.server.admin.reports.queue_file import QueueFileReports
from deferred_middleware.server.admin.reports.sdk_data import DataReports, SdkServices
from deferred_middleware.server.config.queues import QueueConfig


class Reports:
    """The reports. Those for which nothing is given have nothing to show.

    ``queues`` returns the configured queues, and ``queue_yaml`` is their file. ``cron_directories`` are where the
    file ``cron.yaml`` may be, and ``send_cron`` sends the request of one of its entries.
    """

    def __init__(
        self,
        operations: Operations,
        *,
        queues: Callable[[], Mapping[str, QueueConfig]] = dict,
        queue_yaml: Path | None = None,
        cron_directories: tuple[Path, ...] = (),
        send_cron: SendCron | None = None,
        sdk: SdkServices | None = None,
    ) -> None:
        self.failures: FailureReports = FailureReports(operations)
        self.figures: FigureReports = FigureReports(operations)
        self.queue_file: QueueFileReports = QueueFileReports(operations, path=queue_yaml, queues=queues)
        self.cron: CronReports = CronReports(operations, directories=cron_directories, send=send_cron)
        self.data: DataReports = DataReports(sdk)
