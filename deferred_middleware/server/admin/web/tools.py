"""What the functions that answer requests for pages work with."""

from __future__ import annotations

from dataclasses import dataclass

from deferred_middleware.server.admin.operations import Operations
from deferred_middleware.server.admin.reports.reports import Reports
from deferred_middleware.server.admin.web.live import LiveUpdates


@dataclass(frozen=True, kw_only=True)
class PageTools:
    """The operations and reports, which are the only way to the tasks, and the live updates.

    ``editor`` is the template of the addresses that open a file in an editor.
    """

    operations: Operations
    live: LiveUpdates
    reports: Reports
    editor: str = ""
