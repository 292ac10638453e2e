"""The warm-up: a module that is imported once, before the first payload is decoded."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import threading
import time

from deferred_middleware.errors import SettingsError, WarmupError

logger = logging.getLogger("deferred_middleware")


class Warmup:
    """Imports a module once; a failed import is tried again the next time.

    Raises :class:`~deferred_middleware.SettingsError` when there is no such module.
    """

    def __init__(self, module: str | None) -> None:
        self._module = module
        self._lock = threading.Lock()
        self.done = module is None
        """Whether there is nothing left to do."""
        if module is not None and not _exists(module):
            raise SettingsError("DEFERRED_WARMUP_MODULE", module, "the name of a module that can be imported")

    def run(self) -> None:
        """Import the module if that is still to be done; whoever comes meanwhile waits. Raises :class:`WarmupError`."""
        with self._lock:
            if self.done or self._module is None:
                return
            started = time.perf_counter()
            try:
                importlib.import_module(self._module)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                milliseconds = (time.perf_counter() - started) * 1000
                raise WarmupError(
                    self._module,
                    f"the warm-up module {self._module} can't be imported: {type(error).__name__}: {error} "
                    f"(after {milliseconds:.0f} ms)",
                ) from error
            self.done = True
            logger.info("warm-up module %s imported in %.0f ms", self._module, (time.perf_counter() - started) * 1000)


def _exists(module: str) -> bool:
    """Tell whether ``module`` is there to import, without importing more of it than its parent packages."""
    if module in sys.modules:
        return True
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False
