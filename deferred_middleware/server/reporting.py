"""Makes the reports of a local server: what the pages and the JSON API show besides tasks and queues."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from deferred_middleware.server.admin.operations import Operations
from deferred_middleware.server.admin.reports.cron import CronAnswer
from deferred_middleware.server.admin.reports.reports import Reports
from deferred_middleware.server.admin.reports.sdk_data import SdkServices
from deferred_middleware.server.config.queues import QueueRegistry
from deferred_middleware.server.config.served import DEFAULT_SERVICE, ServeConfig
from deferred_middleware.server.config.services import ServiceDirectory
from deferred_middleware.server.cron_request import send_cron_request


def make_reports(
    config: ServeConfig,
    operations: Operations,
    *,
    queues: QueueRegistry,
    queue_yaml: Path | None,
    directory: ServiceDirectory,
    delivery_token: str,
    stub_map: Any,
    app_id: str,
) -> Reports:
    """Return the reports. Without ``stub_map`` there is no app, and there are only those of tasks and queues."""
    if stub_map is None:
        return Reports(operations, queues=lambda: queues)

    def send_cron(target: str, url: str) -> CronAnswer:
        began = time.monotonic()
        status, body = send_cron_request(
            directory.by_target(target), url, host=directory.host(target), delivery_token=delivery_token
        )
        return CronAnswer(status=status, seconds=time.monotonic() - began, text=body.decode("utf-8", "replace"))

    def call(service: str, method: str, request: Any, response: Any) -> None:
        stub_map.GetStub(service).MakeSyncCall(service, method, request, response)

    files = [one.app_yaml for one in config.served.apps if one.app_yaml and one.service == DEFAULT_SERVICE]
    return Reports(
        operations,
        queues=lambda: queues,
        queue_yaml=queue_yaml,
        cron_directories=(*(file.absolute().parent for file in files), Path.cwd()),
        send_cron=send_cron,
        sdk=SdkServices(app_id=app_id, call=call, memcache=stub_map.GetStub("memcache")),
    )
