"""The memory that defer_many needs for an endless generator, measured in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.support.repository import ROOT

CALLS = 1_000_000 if os.environ.get("DEFERRED_SOAK") else 60_000
# The limit for fewer calls is lower, so that a growth of half a kilobyte per call is detected.
LIMIT_BYTES = 100 << 20 if CALLS == 1_000_000 else 30 << 20

PROGRAM = """
import json, sys
from tests.support.repository import ROOT
from tests.support import sample
from tests.support.answering import Engine
from google.appengine.api import apiproxy_stub_map
from google.appengine.ext import testbed
from deferred_middleware import call, defer_many

def resident():
    with open("/proc/self/statm") as facts:
        return int(facts.read().split()[1]) * 4096

class Forgetful(Engine):
    def MakeSyncCall(self, service, method, request, response, request_id=None):
        for _ in request.add_request:
            response.taskresult.add().result = 0

bed = testbed.Testbed()
bed.activate()
bed.setup_env(HTTP_HOST="app.example.com", DEFAULT_VERSION_HOSTNAME="app.example.com", overwrite=True)
apiproxy_stub_map.apiproxy.ReplaceStub("taskqueue", Forgetful())
defer_many(call(sample.note, number) for number in range(2000))
start, marks = resident(), []
count = int(sys.argv[1])

def calls():
    for number in range(count):
        if number % (count // 20) == 0:
            marks.append(resident() - start)
        yield call(sample.note, number)

report = defer_many(calls())
marks.append(resident() - start)
json.dump({"enqueued": report.enqueued, "marks": marks}, sys.stdout)
"""


def test_defer_many_takes_no_more_memory_for_more_calls() -> None:
    """Memory grows by less than 30 MB for 60,000 calls, and by less than 100 MB for a million (with DEFERRED_SOAK)."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(CALLS)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
        check=True,
    )
    told = json.loads(result.stdout)

    assert told["enqueued"] == CALLS
    assert max(told["marks"]) < LIMIT_BYTES
