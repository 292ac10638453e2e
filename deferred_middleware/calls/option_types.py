"""The types of the options, for type checkers.

An app can use them for functions of its own that pass options on::

    def defer_mail(user_id: int, **options: Unpack[DeferOptions]) -> None:
        defer(send_mail, user_id, **options)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    import datetime
    from collections.abc import Iterable, Mapping

    from google.appengine.api import taskqueue


class DeferOptions(TypedDict, total=False):
    """The options of :func:`deferred_middleware.defer`, which describes them."""

    _queue: str | Iterable[str] | None
    _countdown: float | datetime.timedelta | None
    _eta: datetime.datetime | None
    _name: str | None
    _target: str | None
    _transactional: bool | Literal["auto"] | None
    _retry_options: taskqueue.TaskRetryOptions | Mapping[str, object] | None
    _headers: Mapping[str, str] | None
    _deadline: float | datetime.timedelta | None
    _max_attempts: int | None
    _url: str | None


class TaskOptions(TypedDict, total=False):
    """The options of the ``options`` method of a function with ``@task``."""

    queue: str | Iterable[str] | None
    countdown: float | datetime.timedelta | None
    eta: datetime.datetime | None
    name: str | None
    target: str | None
    transactional: bool | Literal["auto"] | None
    retry_options: taskqueue.TaskRetryOptions | Mapping[str, object] | None
    headers: Mapping[str, str] | None
    deadline: float | datetime.timedelta | None
    max_attempts: int | None
    url: str | None
