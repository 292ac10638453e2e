"""The queue process starts without the SDK's taskqueue client."""

from __future__ import annotations

import subprocess
import sys

import pytest

START = """
import sys
from deferred_middleware.server.light_start import leave_out_taskqueue_client
{before}
leave_out_taskqueue_client()
import deferred_middleware.server.supervisor
from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as messages
import google.appengine.api.taskqueue as package
print(messages.TaskQueueAddRequest(queue_name=b"mail").queue_name.decode())
print("google.cloud.tasks_v2" in sys.modules, hasattr(package, "add"))
"""


@pytest.mark.parametrize(
    ("before", "expected"),
    [("", "mail\nFalse False\n"), ("from google.appengine.api import taskqueue", "mail\nTrue True\n")],
    ids=["queue process", "imported before"],
)
def test_only_the_messages_are_imported(before: str, expected: str) -> None:
    """If the SDK comes to import its client somewhere else, this fails. A package that is there already stays."""
    code = START.format(before=before)
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == expected
