"""What became of a delivered task, for whoever stands around the request: test tools and frameworks' glue.

Whoever wants to know puts a :class:`Delivery` into the request's ``environ`` under :data:`KEY`; it is filled while the
task runs. Unlike a response it can't be changed by a layer in between.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import webob
    from _typeshed.wsgi import WSGIEnvironment

    from deferred_middleware.execution.outcomes import Outcome

KEY: Final = "deferred_middleware.execution.delivery"
"""The key in ``environ``; no header of a request can set it."""


@dataclasses.dataclass(kw_only=True, slots=True)
class Delivery:
    """What became of the task of one request: nothing yet, or all of this."""

    response: webob.Response | None = None
    """What the task's handler answered, kept by the glue of a framework that may change it on its way."""
    outcome: Outcome | None = None
    """How the attempt ended; None where the request was refused, or not even reached the task's handler."""
    error: BaseException | None = None
    """What the task raised."""


def tell(environ: WSGIEnvironment, outcome: Outcome, error: BaseException | None) -> None:
    """Tell who waits for it how the attempt ended."""
    waiting = delivery_of(environ)
    if waiting is not None:
        waiting.outcome, waiting.error = outcome, error


def delivery_of(environ: WSGIEnvironment) -> Delivery | None:
    """Return where somebody waits to hear what becomes of the task, if anybody does."""
    found = environ.get(KEY)
    return found if isinstance(found, Delivery) else None
