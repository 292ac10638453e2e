"""Await what a call returned, in an event loop of its own, from code that is not asynchronous."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable
from concurrent.futures import Future


def run(awaitable: Awaitable[object]) -> object:
    """Return what ``awaitable`` comes to.

    A thread has one event loop that runs. Where this one has one already, as under a server that calls the app from
    its own loop, the new one runs in another thread, with a copy of the context; the caller's waits meanwhile, as it
    does for everything that a WSGI app does. Raises :class:`RuntimeError` for a future of the caller's running loop,
    which would be waited for in vain.
    """
    running = _running_loop()
    if running is None:
        return asyncio.run(_wait_for(awaitable))
    if isinstance(awaitable, asyncio.Future) and awaitable.get_loop() is running:
        raise RuntimeError(
            "the call returned a future of the event loop that runs in this thread, which has to wait for the task. "
            "Await it in an `async def` function and defer that."
        )
    outcome: Future[object] = Future()
    context = contextvars.copy_context()

    def run_in_thread() -> None:
        try:
            outcome.set_result(context.run(asyncio.run, _wait_for(awaitable)))
        except BaseException as error:  # noqa: BLE001 - raised again by who waits
            outcome.set_exception(error)

    thread = threading.Thread(target=run_in_thread, name="deferred_middleware event loop")
    thread.start()
    try:
        return outcome.result()
    finally:
        thread.join()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def _wait_for(awaitable: Awaitable[object]) -> object:
    return await awaitable
