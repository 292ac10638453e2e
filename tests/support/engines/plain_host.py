"""An app process without App Engine: the app on a plain WSGI server, and an import of the SDK fails.

``python -m tests.support.engines.plain_host [MODULE:APP]`` prints its port when it is ready.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any


class _Blocked:
    """Finds no module of the SDK."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> None:
        if name.split(".")[:2] == ["google", "appengine"]:
            raise ImportError(f"{name} must not be imported in this process")


def main(name: str = "tests.support.engines.app:app") -> None:
    """Serve until killed."""
    sys.meta_path.insert(0, _Blocked())
    from waitress.server import create_server

    module, _, attribute = name.partition(":")
    app = getattr(importlib.import_module(module), attribute)
    server: Any = create_server(app, host="127.0.0.1", port=0, threads=8)
    sys.stdout.write(f"{server.effective_port}\n")
    sys.stdout.flush()
    server.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
