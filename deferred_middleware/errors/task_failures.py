"""The exceptions with which a task fails on purpose: those of the SDK's deferred library, or stand-ins for them.

Importing this module imports the SDK, except in a process that does without it
(:mod:`deferred_middleware.errors.sdk_types`).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from deferred_middleware.errors import sdk_types

if TYPE_CHECKING:
    # The SDK has no types.
    class PermanentTaskFailure(Exception):
        """Raise it in a task that can never succeed: the task is not tried again."""

    class SingularTaskFailure(Exception):
        """Raise it in a task to have it tried again, without an error in the log."""

elif sdk_types.HAS_SDK:
    from google.appengine.ext.deferred import PermanentTaskFailure as PermanentTaskFailure
    from google.appengine.ext.deferred import SingularTaskFailure as SingularTaskFailure
else:
    PermanentTaskFailure = sdk_types.task_failure("PermanentTaskFailure")
    SingularTaskFailure = sdk_types.task_failure("SingularTaskFailure")


def is_permanent(kind: type[BaseException]) -> bool:
    """Tell whether an exception of this type ends its task."""
    return _is(kind, PermanentTaskFailure)


def is_singular(kind: type[BaseException]) -> bool:
    """Tell whether an exception of this type asks for another attempt without an error in the log."""
    return _is(kind, SingularTaskFailure)


def _is(kind: type[BaseException], ours: type[BaseException]) -> bool:
    if issubclass(kind, ours):
        return True
    # Though this process uses stand-ins, an app that imports the SDK's deferred library may raise its exceptions.
    theirs = None if sdk_types.HAS_SDK else sys.modules.get("google.appengine.ext.deferred")
    return theirs is not None and issubclass(kind, getattr(theirs, ours.__name__))
