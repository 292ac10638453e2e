"""What Google Cloud's metadata server knows of this process: its project, its region and its service account.

The server is there on Cloud Run, App Engine and Compute Engine
(https://cloud.google.com/run/docs/container-contract#metadata-server). Answers are cached, failures are not.
"""

from __future__ import annotations

import functools
import os
import time
from typing import Final

HOST_VARIABLE: Final = "GCE_METADATA_HOST"
"""Google's own libraries read the address of another metadata server from this variable."""
_HOST: Final = "metadata.google.internal"
_SECONDS: Final = 2.0
_ATTEMPTS_ON_CLOUD_RUN: Final = 3
"""On Cloud Run the server is always there, but it may be slow while an instance starts."""

PROJECT: Final = "project/project-id"
REGION: Final = "instance/region"
SERVICE_ACCOUNT: Final = "instance/service-accounts/default/email"


def ask(name: str) -> str | None:
    """Return the value of ``name``; None if there is no metadata server, or if it has no such value.

    A region is returned without the project before it.
    """
    host = os.environ.get(HOST_VARIABLE, "").strip() or _HOST
    attempts = _ATTEMPTS_ON_CLOUD_RUN if os.environ.get("K_SERVICE") else 1
    for attempt in range(attempts):
        if attempt:
            time.sleep(0.1 * attempt)
        try:
            return _ask(host, name)
        except OSError:
            continue  # outside of Google's platform there is no such server
    return None


def ask_on_google(name: str) -> str | None:
    """Return the value of ``name`` as :func:`ask` does; None at once if nothing says that there is a metadata server.

    It is for values without which the caller can do, because elsewhere a missing server costs two seconds.
    """
    there = os.environ.get(HOST_VARIABLE) or os.environ.get("K_SERVICE") or os.environ.get("GAE_ENV") == "standard"
    return ask(name) if there else None


@functools.lru_cache(maxsize=16)
def _ask(host: str, name: str) -> str | None:
    import urllib.request  # few processes need it, and its import takes as long as that of all our settings

    request = urllib.request.Request(f"http://{host}/computeMetadata/v1/{name}", headers={"Metadata-Flavor": "Google"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy
    with opener.open(request, timeout=_SECONDS) as response:
        text: str = response.read(1000).decode("ascii", "replace").strip()
    return (text.rpartition("/")[2] if name == REGION else text) or None


def forget() -> None:
    """Forget the answers, for tests."""
    _ask.cache_clear()
