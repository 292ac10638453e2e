from typing import Any


def check(tasks: Any) -> None:
    assert [(str(task.label), task.queue) for task in tasks.enqueued] == [("page/send_welcome", "mail")]
