"""Django: tasks run as requests of the site, through its ``MIDDLEWARE``. The middleware's module has the manual."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

from deferred_middleware.calls.call import call
from deferred_middleware.calls.callables import AnyCallable
from deferred_middleware.enqueue.api import enqueue

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import ParamSpec, TypeVarTuple, Unpack

    from deferred_middleware.calls.option_types import DeferOptions

    P = ParamSpec("P")
    Ts = TypeVarTuple("Ts")


@overload
def defer_on_commit(func: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None: ...
@overload
def defer_on_commit(
    func: Callable[[Unpack[Ts]], object],
    /,
    *args: Unpack[Ts],
    _using: str | None = None,
    **options: Unpack[DeferOptions],
) -> None: ...
def defer_on_commit(func: AnyCallable, /, *args: Any, _using: str | None = None, **kwargs: Any) -> None:  # type: ignore[misc] # mypy does not match *args: Any with *args: *Ts
    """Defer a call when the surrounding database transaction commits, or at once outside of a transaction.

    The call is checked now. After the commit its arguments are pickled, and it is enqueued. ``_using`` is the alias of
    the database, by default of the default database. The other options are those of :func:`deferred_middleware.defer`.

    A crash between the commit and the enqueue loses the call, because the database and the queue can't share a
    transaction.
    """
    from django.db import transaction

    prepared = call(func, *args, **kwargs)
    transaction.on_commit(lambda: enqueue(prepared), using=_using)
