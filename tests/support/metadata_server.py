"""Google's metadata server, over HTTP."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Mapping

from tests.support.threadedserver import ThreadedHTTPServer

CLOUD_RUN: Mapping[str, str] = {
    "project/project-id": "shop",
    "instance/region": "projects/123456/regions/europe-west1",
    "instance/service-accounts/default/email": "runner@shop.iam.gserviceaccount.com",
}


class MetadataServer:
    """Answers questions about the instance, as a context manager; ``host`` is for ``GCE_METADATA_HOST``."""

    def __init__(self, values: Mapping[str, str] = CLOUD_RUN) -> None:
        self.values = dict(values)
        self.asked: list[str] = []
        metadata = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.removeprefix("/computeMetadata/v1/")
                metadata.asked.append(name)
                known = self.headers["Metadata-Flavor"] == "Google" and name in metadata.values
                body = metadata.values[name].encode() if known else b"not found"
                self.send_response(200 if known else 404)
                self.send_header("Metadata-Flavor", "Google")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        self._server = ThreadedHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> MetadataServer:
        """Start the server."""
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._server.server_close()
