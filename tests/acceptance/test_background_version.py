"""The version of the background module to which the local server sends a task."""

from __future__ import annotations

import pytest

from tests.support.running import TELL, Recorder, Serve

FILES = {
    "main.py": """
from google.appengine.api import wrap_wsgi_app
from deferred_middleware import DeferredMiddleware, defer
import work

def handle(environ, start_response):
    if environ["PATH_INFO"] == "/defer":
        defer(work.note)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"ok"]

app = wrap_wsgi_app(DeferredMiddleware(handle))
""",
    "work.py": TELL
    + """
def note():
    tell(service=os.environ["GAE_SERVICE"], version=os.environ["GAE_VERSION"])
""",
}


@pytest.mark.parametrize(("setting", "version"), [("same", "local"), ("default", "v1"), ("v2", "v2")])
def test_a_task_goes_to_the_version_of_the_setting(
    serve: Serve, recorder: Recorder, setting: str, version: str
) -> None:
    """The same version, the first one, which is the default version here, or the one with the name."""
    server = serve(
        FILES,
        services=("default", "v1.background", "v2.background", "background"),
        environ={"DEFERRED_BACKGROUND_MODULE": "background", "DEFERRED_BACKGROUND_VERSION": setting},
    )
    server.post("/defer", None)
    assert recorder.next() == {"service": "background", "version": version}
    assert server.stop() == 0
