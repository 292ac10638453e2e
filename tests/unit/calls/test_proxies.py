"""Tests of functions behind a proxy, as ``wrapt`` makes it: its ``__class__`` is that of what it wraps."""

from __future__ import annotations

import datetime
import functools
import pickle
from typing import Any

import pytest

from deferred_middleware import NotImportableError, UnpicklableArgumentError, call, defer, task
from deferred_middleware.calls import allowlist, payload
from deferred_middleware.testing import capture_tasks
from tests.support import sample


class Proxy:
    """Calls what it wraps, and has its attributes and its ``__class__``, but another type."""

    def __init__(self, wrapped: Any) -> None:
        object.__setattr__(self, "_wrapped", wrapped)

    @property  # type: ignore[misc] # as wrapt does
    def __class__(self) -> Any:
        """The class of what it wraps."""
        return type(self._wrapped)

    def __getattribute__(self, name: str) -> Any:
        if name in ("_wrapped", "__class__", "__get__", "__reduce_ex__", "__eq__"):
            return object.__getattribute__(self, name)
        return getattr(object.__getattribute__(self, "_wrapped"), name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._wrapped, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Note that the proxy is called."""
        sample.ran.append("proxy")
        return self._wrapped(*args, **kwargs)

    def __get__(self, instance: object, owner: type) -> Any:
        return Proxy(self._wrapped.__get__(instance, owner))

    def __eq__(self, other: object) -> bool:
        wrapped = object.__getattribute__(self, "_wrapped")
        return bool(wrapped == getattr(other, "_wrapped", other))

    def __hash__(self) -> int:
        return hash(self._wrapped)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise NotImplementedError("object proxy must define __reduce_ex__()")


@Proxy
def resize(key: object) -> None:
    """Note the key."""
    sample.ran.append(key)


@task(queue="mail")
@Proxy
def send(who: str) -> None:
    """Note who."""
    sample.ran.append(who)


class Shop:
    """Has proxies of methods of every kind."""

    @Proxy
    def sell(self, what: str) -> None:
        """Note what."""
        sample.ran.append(what)

    @classmethod
    @Proxy
    def close(cls) -> None:
        """Note the class."""
        sample.ran.append(cls.__name__)

    @Proxy
    @staticmethod
    def count(number: int) -> None:
        """Note the number."""
        sample.ran.append(number)


ALL = [
    (resize, (1,), "resize", 1),
    (functools.partial(resize, 2), (), "resize", 2),
    (send, ("ann",), "send", "ann"),
    (Shop().sell, ("tea",), "Shop.sell", "tea"),
    (Shop.close, (), "Shop.close", "Shop"),
    (Shop.count, (3,), "Shop.count", 3),
]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(("func", "args", "qualname", "noted"), ALL)
def test_a_proxy_is_deferred_by_name(
    func: Any, args: tuple[Any, ...], qualname: str, noted: object, protocol: int
) -> None:
    """The payload names the proxy, so the task calls it, and a list of callables can allow it."""
    prepared = call(func, *args)
    data = payload.dumps(prepared, protocol)

    allowlist.check_payload(data, (f"{__name__}:{qualname}",), legacy=False)
    arrived = payload.loads(data)
    arrived.run()

    assert prepared.label == arrived.label == (__name__, qualname)
    assert sample.ran == ["proxy", noted]


def test_the_module_pickles_a_proxy_with_any_arguments() -> None:
    """An object among the arguments makes no difference, and one that can't be pickled is named."""
    day = datetime.date(2030, 1, 1)
    assert payload.loads(payload.dumps(call(resize, day), 5)).args == (day,)

    with pytest.raises(UnpicklableArgumentError, match=r"args\[0\]: generator"):
        payload.dumps(call(resize, (n for n in "ab")), 5)


def test_task_above_a_proxy_has_its_options() -> None:
    """The methods of @task defer the proxy."""
    with capture_tasks() as tasks:
        send.defer("ann")
        defer(send, "bob")

    assert [(task.queue, task.args) for task in tasks.enqueued] == [("mail", ("ann",)), ("mail", ("bob",))]
    assert all(task.func is send for task in tasks.enqueued)


def test_a_proxy_that_import_does_not_find_is_refused() -> None:
    """Another proxy of the same function, and a proxy of a local function, would not be what the task calls."""
    with pytest.raises(NotImportableError, match="not the object that import finds"):
        payload.dumps(call(Proxy(resize._wrapped), 1), 5)

    def local() -> None: ...

    with pytest.raises(NotImportableError, match="inside a function"):
        payload.dumps(call(Proxy(local)), 5)
