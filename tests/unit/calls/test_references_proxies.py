"""Tests of functions behind a proxy, as ``wrapt`` makes it: its ``__class__`` is that of what it wraps."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import pickle
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest

from deferred_middleware import NotAllowedError, NotImportableError, UnpicklableArgumentError, call, defer, task
from deferred_middleware.calls import payload
from deferred_middleware.calls.allowlist import check_callable
from deferred_middleware.calls.callables import agrees
from deferred_middleware.config.process import current_settings
from deferred_middleware.testing import capture_tasks
from tests.support import sample


class Proxy:
    """Calls what it wraps, and has its attributes and its ``__class__``, but another type."""

    def __init__(self, wrapped: Any) -> None:
        object.__setattr__(self, "__wrapped__", wrapped)

    @property  # type: ignore[misc] # as wrapt does
    def __class__(self) -> Any:
        """The class of what it wraps."""
        return type(self.__wrapped__)

    def __getattribute__(self, name: str) -> Any:
        if name in ("__wrapped__", "__class__", "__get__", "__reduce_ex__", "__eq__"):
            return object.__getattribute__(self, name)
        return getattr(object.__getattribute__(self, "__wrapped__"), name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.__wrapped__, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Note that the proxy is called."""
        sample.ran.append("proxy")
        return self.__wrapped__(*args, **kwargs)

    def __get__(self, instance: object, owner: type) -> Any:
        return Proxy(self.__wrapped__.__get__(instance, owner))

    def __eq__(self, other: object) -> bool:
        wrapped = object.__getattribute__(self, "__wrapped__")
        return bool(wrapped == getattr(other, "__wrapped__", other))

    def __hash__(self) -> int:
        return hash(self.__wrapped__)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise NotImplementedError("object proxy must define __reduce_ex__()")


class Decoration:
    """Takes the place of the function that it decorates, as many decorators that are classes do."""

    def __init__(self, func: Any) -> None:
        functools.update_wrapper(self, func)
        self.func = func

    def __call__(self, *args: Any) -> Any:
        """Note that the decoration is called."""
        sample.ran.append("proxy")
        return self.func(*args)

    def __get__(self, instance: object, owner: type) -> Any:
        return self if instance is None else functools.partial(self, instance)


@Proxy
def resize(key: object) -> None:
    """Note the key."""
    sample.ran.append(key)


@task(queue="mail", redact=["who"])
@Proxy
def send(who: str) -> None:
    """Note who."""
    sample.ran.append(who)


@Decoration
def crop(key: object) -> None:
    """Note the key."""
    sample.ran.append(key)


@Proxy
class Order:
    """A class behind a proxy."""

    def __init__(self, number: int) -> None:
        sample.ran.append(number)


def call_with(func: Callable[[object], object], argument: object) -> None:
    """Call a function that is an argument."""
    func(argument)


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
    @classmethod
    def open(cls) -> None:
        """Note the class."""
        sample.ran.append(cls.__name__)

    @Decoration
    def wrap(self, what: str) -> None:
        """Note what."""
        sample.ran.append(what)

    @staticmethod
    @Proxy
    def weigh(number: int) -> None:
        """Note the number."""
        sample.ran.append(number)

    @Proxy
    @staticmethod
    def __hidden(number: int) -> None:
        sample.ran.append(number)

    @Proxy
    def __secret(self, what: str) -> None:
        sample.ran.append(what)

    @staticmethod
    def private() -> tuple[Any, Any]:
        """Return the private methods."""
        return Shop.__hidden, Shop().__secret

    @Proxy
    @staticmethod
    def count(number: int) -> None:
        """Note the number."""
        sample.ran.append(number)


HIDDEN, SECRET = Shop.private()
ALL = [
    (resize, (1,), "resize", 1),
    (functools.partial(resize, 2), (), "resize", 2),
    (crop, (4,), "crop", 4),
    (functools.partial(crop, 5), (), "crop", 5),
    (send, ("ann",), "send", "ann"),
    (Order, (6,), "Order", 6),
    (Shop().sell, ("tea",), "Shop.sell", "tea"),
    (Shop.close, (), "Shop.close", "Shop"),
    (Shop.open, (), "Shop.open", "Shop"),
    (Shop.count, (3,), "Shop.count", 3),
    (Shop.weigh, (7,), "Shop.weigh", 7),
    (Shop().wrap, ("cup",), "Shop.wrap", "cup"),
    (HIDDEN, (8,), "Shop.__hidden", 8),
    (SECRET, ("ink",), "Shop.__secret", "ink"),
]
UNLISTED = (HIDDEN, SECRET)  # a list has the mangled names of private methods


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(("func", "args", "qualname", "noted"), ALL)
def test_a_proxy_is_deferred_by_name(
    func: Any, args: tuple[Any, ...], qualname: str, noted: object, protocol: int
) -> None:
    """The payload names the proxy, so the task calls it, and a list of callables can allow it."""
    prepared = call(func, *args)
    data = payload.dumps(prepared, protocol)
    listed = () if func in UNLISTED else (f"{__name__}:{qualname}",)

    arrived = payload.loads(data, dataclasses.replace(current_settings(), allowed_callables=listed))
    arrived.run()

    assert prepared.label == arrived.label == (__name__, qualname)
    assert agrees(__name__, qualname, arrived.func)
    assert sample.ran == ["proxy", noted]


@pytest.mark.parametrize(("func", "args", "qualname", "noted"), ALL)
def test_a_list_without_the_proxy_refuses_it(func: Any, args: tuple[Any, ...], qualname: str, noted: object) -> None:
    """A proxy is allowed by its own name only."""
    data = payload.dumps(call(func, *args), 5)

    for listed in ("tests.support.sample:note", f"{__name__}:Proxy", f"{__name__}:call_with"):
        with pytest.raises(NotAllowedError):
            payload.loads(data, dataclasses.replace(current_settings(), allowed_callables=(listed,)))


class EqualToAll:
    """Says that it is a method of the shop, and that it equals everything."""

    __qualname__ = "Shop.count"

    def __call__(self, number: int) -> None:
        """Note that the wrong code ran."""
        sample.ran.append("wrong")

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 1


def test_the_list_does_not_believe_that_a_proxy_is_equal() -> None:
    """The class makes a proxy anew for each access; what is inside must be the very function of the class."""
    allowed = (f"{__name__}:Shop.count",)
    check_callable(Shop.count, allowed)

    with pytest.raises(NotAllowedError):
        check_callable(Proxy(EqualToAll()), allowed)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(("func", "args", "qualname", "noted"), [row for row in ALL if len(row[1]) == 1])
def test_a_proxy_as_an_argument_travels_by_name(
    func: Any, args: tuple[Any, ...], qualname: str, noted: object, protocol: int
) -> None:
    """What import finds can be an argument as well."""
    payload.loads(payload.dumps(call(call_with, func, *args), protocol)).run()

    assert sample.ran == ["proxy", noted]


def test_a_proxy_goes_with_any_arguments() -> None:
    """An object among the arguments makes no difference, and one that can't be pickled is named."""
    day = datetime.date(2030, 1, 1)
    assert payload.loads(payload.dumps(call(resize, day), 5)).args == (day,)

    for func in (resize, crop):
        with pytest.raises(UnpicklableArgumentError, match=r"args\[0\]: generator"):
            payload.dumps(call(func, (n for n in "ab")), 5)
    with pytest.raises(UnpicklableArgumentError, match=r"args\[1\]\[1\]: generator"):
        payload.dumps(call(call_with, resize, [crop, (n for n in "ab")]), 5)


def test_task_above_a_proxy_has_its_options() -> None:
    """The methods of @task defer the proxy."""
    with capture_tasks() as tasks:
        send.defer("ann")
        defer(send, "bob")

    assert [(task.queue, task.args) for task in tasks.enqueued] == [("mail", ("ann",)), ("mail", ("bob",))]
    assert all(task.func is send for task in tasks.enqueued)


def test_what_task_above_a_proxy_redacts_stays_secret() -> None:
    """The description of a call leaves out the arguments that @task redacts."""
    assert "ann" not in call(send, "ann").describe()


def test_a_proxy_that_import_does_not_find_is_refused() -> None:
    """Another proxy of the same function, and a proxy of a local function, would not be what the task calls."""
    for kind in (Proxy, Decoration):
        with pytest.raises(NotImportableError, match="not the object that import finds"):
            payload.dumps(call(kind(resize.__wrapped__), 1), 5)

        def local() -> None: ...

        with pytest.raises(NotImportableError, match="inside a function"):
            payload.dumps(call(kind(local)), 5)


@pytest.mark.parametrize("autospec", [True, False])
@pytest.mark.parametrize("name", ["resize", "crop", "send", "Order"])
def test_a_mock_in_the_place_of_a_proxy_is_refused_as_a_mock(name: str, autospec: bool) -> None:
    """A mock has the class of what it stands for, as a proxy has. It can't be deferred."""
    module = sys.modules[__name__]
    with (
        mock.patch.object(module, name, autospec=autospec or None),
        pytest.raises(NotImportableError, match="is a mock"),
    ):
        payload.dumps(call(getattr(module, name), 1), 5)
