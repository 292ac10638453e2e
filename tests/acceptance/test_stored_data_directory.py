"""A data directory of an earlier version opens: its tasks run, and its entities and changes are there.

An earlier commit wrote ``data/data-dir-0.1.0-dev.tar.gz`` (``python -m tests.support.stored_data_dir``), with a server
that was killed. Don't write it anew: it represents users' directories.
"""

from __future__ import annotations

import json
import tarfile
import urllib.request
from pathlib import Path

from tests.support.running import WAIT_SECONDS, Recorder, Serve
from tests.support.stored_data_dir import FILES

PACKED = Path(__file__).parent / "data" / "data-dir-0.1.0-dev.tar.gz"


def test_a_directory_of_an_earlier_version_opens(make_server: Serve, recorder: Recorder) -> None:
    """Waiting tasks run with their arguments, names, headers and signatures; the dead letter and the entities stay."""
    server = make_server(FILES)
    server.data_dir.mkdir(mode=0o700)
    with tarfile.open(PACKED) as packed:
        for member in packed:
            stream = packed.extractfile(member)
            assert stream is not None
            path = server.data_dir / member.name
            path.write_bytes(stream.read())
            path.chmod(0o600)

    server.start()

    assert json.loads(server.get("/notes")) == {"n": ["café", 2**40], "committed": ["by a transaction", 7]}
    token = json.loads((server.data_dir / "server.json").read_text())["token"]
    request = urllib.request.Request(f"{server.admin}/api/v1/changes", headers={"X-Deferred-Admin-Token": token})
    with urllib.request.urlopen(request, timeout=WAIT_SECONDS) as answer:
        assert [(each["via"], each["action"]) for each in json.load(answer)["changes"]] == [("command", "pause")]
    (dead,) = json.loads(server.command("tasks", "--state", "failed", "--json").stdout)["tasks"]
    assert (dead["queue"], dead["function"], dead["execution_count"]) == ("failing", "main/fail", 1)
    assert server.command("show", "default/its-own-name").returncode == 0

    assert server.command("resume", "default").returncode == 0
    ran = [recorder.next() for _ in range(5)]
    expected = {
        "with a header": ("", "a"),
        "compressed": ("", None),
        "in the datastore": ("", None),
        "in a namespace": ("tenant", None),
        "of a transaction": ("", None),
    }
    assert {each["ran"]: (each["namespace"], each["tenant"]) for each in ran} == expected
    assert server.command("drain").returncode in (0, 5)
    assert recorder.is_silent(0.5)
