"""Call a function when the process ends, while its thread pools still work."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable


class BeforeEnd:
    """Has ``function`` called when the process ends, and perhaps a second time.

    ``atexit`` alone is too late: the pools in which the SDK makes its calls are closed before (``_python_exit`` in
    ``concurrent/futures/thread.py``). They have it from ``threading``, whose functions are called first, the youngest
    before the others; it has no public name.
    """

    __slots__ = ("_function", "_registered_by")

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function
        self._registered_by: object = None
        atexit.register(function)

    def register(self) -> None:
        """Have it called; for each time that there is something to be done.

        ``wrap_wsgi_app`` reloads ``threading``, which then knows of none (SDK: ``runtime/thread_hooks.py``).
        """
        register = getattr(threading, "_register_atexit", None)
        if register is self._registered_by or register is None:
            return
        self._registered_by = register
        import concurrent.futures.thread  # noqa: F401 - what it registers is to be called after ours

        try:
            register(self._function)
        except RuntimeError:
            return  # the process is ending already
