from typing import Any


def check(tasks: Any) -> None:
    assert [task.queue for task in tasks.enqueued] == ["mail"] * 3
    assert tasks.enqueued[2].eta > tasks.enqueued[0].eta
