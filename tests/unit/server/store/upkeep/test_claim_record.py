"""Tests of the record of claimed tasks, which the next server reads."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest

from deferred_middleware.server.store.store import TaskStore
from deferred_middleware.server.store.upkeep import claim_record
from deferred_middleware.server.store.upkeep.claim_record import ClaimRecord, read_claims
from tests.support.storing import DAY_USEC, LANE, NOW, Clock, completion, new_task


def killed(directory: Path) -> Path:
    """Return a copy of a store's files, as its server leaves them when it is killed now."""
    return Path(shutil.copytree(directory, directory.with_name("killed"))) / "tasks.sqlite"


def test_what_is_noted_is_read(tmp_path: Path) -> None:
    """Notes are read as long as they are not removed; a missing file and a cut one have what they have."""
    path = tmp_path / "claims"
    assert read_claims(path) == []
    record = ClaimRecord(path)
    slots = [record.add(task_id, task_id - 1) for task_id in (1, 2, 3)]
    record.remove(slots[1])
    assert sorted(read_claims(path)) == [(1, 0), (3, 2)]
    record.close()
    record.close()
    assert record.add(4, 0) == record.add(5, 0)
    path.write_bytes(path.read_bytes()[:-5])
    assert len(read_claims(path)) <= 2


def test_more_claims_than_slots_are_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the file is full, further claims are not noted."""
    monkeypatch.setattr(claim_record, "_SLOTS", 2)
    record = ClaimRecord(tmp_path / "claims")
    slots = [record.add(task_id, 0) for task_id in (1, 2, 3)]
    record.remove(slots[2])
    record.remove(slots[0])
    assert record.add(4, 0) == slots[0]
    assert sorted(read_claims(tmp_path / "claims")) == [(2, 0), (4, 0)]


def test_a_record_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The server runs without the record, for example on a full disk."""
    (tmp_path / "tasks.sqlite.claimed").symlink_to("nowhere")
    with contextlib.closing(TaskStore(tmp_path / "tasks.sqlite", clock=Clock())) as store:
        store.add([new_task("a")])
        assert len(store.claim({LANE: 1}, NOW)) == 1
    assert "can't say which tasks were running" in caplog.text


def test_claimed_tasks_are_counted_and_due_after_a_kill(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """After a kill, the next server says how many tasks run again, and they are due even if the clock went back."""
    (tmp_path / "data").mkdir()
    with contextlib.closing(TaskStore(tmp_path / "data" / "tasks.sqlite", clock=clock)) as store:
        store.add([new_task(name) for name in ("done", "released", "retried", "claimed", "waiting")])
        done, released, retried, _claimed = store.claim({LANE: 4}, NOW)
        later = NOW + DAY_USEC
        store.complete([completion(done), completion(retried, "ready", eta_usec=later)])
        store.release([released])
        path = killed(tmp_path / "data")
        # As after a power cut that brings old notes back: its number of attempts is another one by now.
        with (path.parent / "tasks.sqlite.claimed").open("r+b") as record:
            record.write(retried.id.to_bytes(8, "little") + bytes(8))
    clock.usec -= DAY_USEC
    with contextlib.closing(TaskStore(path, clock=clock)) as store:
        assert "Interrupted tasks that run again: 1 " in caplog.text
        assert [task.name for task in store.claim({LANE: 9}, clock.usec)] == ["claimed"]
