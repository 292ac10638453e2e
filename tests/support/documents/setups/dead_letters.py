from typing import Any

notified: list[str] = []
notify = notified.append


def site(environ: Any, start_response: Any) -> list[bytes]:
    return []


def check(tasks: Any) -> None:
    namespace = globals()
    tasks.app = namespace["app"]
    namespace["charge"].defer("tea")
    tasks.run(attempts=5, raise_errors=False)
    assert notified == ["page/charge failed for good: the bank does not answer"]
