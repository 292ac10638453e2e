"""The queue process starts without the SDK's taskqueue client, which it never uses.

The SDK's package ``google.appengine.api.taskqueue`` imports that client, and with it the client of Cloud Tasks and
several HTTP libraries, for which the server took twice as long to start. The queue process needs only the package's
messages, such as ``taskqueue_service_bytes_pb2``, and so do the parts of the SDK that run in it. So the package is
replaced by an empty one with the same folder, before anything imports it.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

_PARENT: Final = "google.appengine.api"
_PACKAGE: Final = f"{_PARENT}.taskqueue"


def leave_out_taskqueue_client() -> None:
    """From now on, importing the SDK's taskqueue package imports nothing but the modules that are asked for.

    For the queue process alone: an app's process needs the whole package. Does nothing if it is imported already.
    """
    if _PACKAGE in sys.modules:
        return
    parent = importlib.import_module(_PARENT)
    package = ModuleType(_PACKAGE, "An empty package; see deferred_middleware.server.light_start.")
    package.__path__ = [str(Path(folder) / "taskqueue") for folder in parent.__path__]
    sys.modules[_PACKAGE] = package
