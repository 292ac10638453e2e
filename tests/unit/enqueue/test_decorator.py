"""Tests of ``@task``: deferring and calling functions and methods with their own options."""

from __future__ import annotations

import asyncio
import inspect
import logging
import pickle
from typing import Any

import pytest

from deferred_middleware import DeferredMiddleware, OptionError, UnknownOptionError, call, defer, task
from deferred_middleware.testing import capture_tasks
from tests.support import sample
from tests.support.delivering import Queued


@task(queue="mail", countdown=60, max_attempts=2, redact=("password",))
def welcome(user: int, password: str = "") -> str:
    """Welcome a user."""
    sample.ran.append((user, password))
    if password == "wrong":
        raise ValueError("wrong")
    return f"welcome {user}"


@task
async def later(value: object) -> None:
    """Record a value from inside an event loop."""
    await asyncio.sleep(0)
    sample.ran.append(value)


class Shop:
    """A class with every kind of decorated method."""

    def __init__(self, name: str) -> None:
        self.name = name

    @task(queue="slow")
    def sell(self, item: str) -> str:
        """Sell something."""
        sample.ran.append((self.name, item))
        return item

    @task(queue="slow")
    @classmethod
    def open(cls, name: str) -> str:
        """Open a shop."""
        sample.ran.append((cls.__name__, name))
        return name

    @task
    @staticmethod
    def count(number: int) -> int:
        """Count."""
        sample.ran.append(number)
        return number

    @task
    def __stock(self, item: str) -> None:
        sample.ran.append(("stock", self.name, item))

    def stock(self, item: str) -> None:
        """Defer a private method."""
        self.__stock.defer(item)


def app(environ: Any, start_response: Any) -> list[bytes]:
    """Answer requests that are not tasks."""
    start_response("404 Not Found", [])
    return []


def test_the_function_stays_what_it_is() -> None:
    """A decorated function is still a function, can be called as before, and pickles by its name."""
    function: Any = welcome
    coroutine_function: Any = later
    assert inspect.isfunction(function)
    assert inspect.iscoroutinefunction(coroutine_function)
    assert welcome(1) == "welcome 1"
    assert pickle.loads(pickle.dumps(welcome)) is welcome
    assert welcome.__doc__ == "Welcome a user."


@pytest.mark.parametrize("how", ["defer", "defer_async", "call", "plain"])
def test_its_options_hold_however_it_is_deferred(how: str) -> None:
    """The declared options apply to the methods and to a plain defer()."""
    with capture_tasks(DeferredMiddleware(app)) as tasks:
        if how == "defer":
            welcome.defer(1, password="x")
        elif how == "defer_async":
            welcome.defer_async(1, password="x").result(30)
        elif how == "call":
            prepared = welcome.call(1, password="x")
            assert prepared.options.queues == ("mail",)
            assert prepared.options.max_attempts == 2
            return
        else:
            defer(welcome, 1, password="x")

        tasks.assert_enqueued(welcome, 1, password="x", _queue="mail", _countdown=60)


def test_a_calls_own_options_go_first() -> None:
    """options() and defer() override the declared options, and an ETA replaces a countdown."""
    import datetime

    eta = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)
    assert call(welcome, 1, _queue="fast").options.queues == ("fast",)
    assert call(welcome, 1, _eta=eta).options.eta_posix == pytest.approx(eta.timestamp())

    with capture_tasks() as tasks:
        quick = welcome.options(queue="fast", countdown=0)
        quick.options(name="one").defer(1)
        assert quick(2) == "welcome 2"
        tasks.assert_enqueued(welcome, 1, _queue="fast", _name="one", _countdown=0)


def test_the_cap_of_attempts_holds() -> None:
    """A task that fails is not retried after max_attempts, whatever its queue allows."""
    with capture_tasks(DeferredMiddleware(app)) as tasks:
        welcome.defer(1, "wrong")

        first = tasks.run(raise_errors=False)
        second = tasks.run(raise_errors=False)

    assert (first.status, second.status) == (500, 200)
    assert "EXHAUSTED" in str(second.outcome)


def test_a_redacted_argument_is_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    """A redacted argument is in no log, whether it is passed by position or by keyword."""
    caplog.set_level(logging.DEBUG)
    with capture_tasks(DeferredMiddleware(app)) as tasks:
        welcome.defer(1, "wrong")
        tasks.run(raise_errors=False)

    assert f"{__name__}/welcome(1, <redacted>)" in caplog.text
    assert "'wrong'" not in caplog.text


def test_methods_of_every_kind_run() -> None:
    """Methods, class methods, static methods and private methods run on the object that they are bound to."""
    with capture_tasks(DeferredMiddleware(app)) as tasks:
        shop = Shop("corner")
        assert (shop.sell("tea"), Shop.open("x"), shop.open("y"), Shop.count(1), Shop.count(2)) == (
            "tea",
            "x",
            "y",
            1,
            2,
        )
        sample.ran.clear()
        shop.sell.defer("tea")
        defer(shop.sell, "milk")
        shop.sell.options(queue="fast").defer("salt")
        Shop.open.defer("main street")
        counting: Any = shop
        counting.count.defer(3)
        shop.stock("rice")
        tasks.run_all()

    assert sample.ran == [
        ("corner", "tea"),
        ("corner", "milk"),
        ("corner", "salt"),
        ("Shop", "main street"),
        3,
        ("stock", "corner", "rice"),
    ]
    assert [t.queue for t in tasks.enqueued] == ["slow", "slow", "fast", "slow", "default", "default"]
    assert tasks.enqueued[0].url == f"/_cb/deferred/{__name__}/Shop.sell"


def test_a_bound_method_is_equal_to_itself() -> None:
    """A decorated method of an object compares and hashes like a bound method."""
    shop = Shop("corner")

    assert shop.sell == shop.sell
    assert hash(shop.sell) == hash(shop.sell)
    assert shop.sell != Shop("other").sell
    assert Shop.sell(shop, "tea") == "tea"


def test_an_async_function_runs_to_its_end() -> None:
    """A decorated coroutine function is awaited."""
    with capture_tasks(DeferredMiddleware(app)) as tasks:
        later.defer(1)
        tasks.run()

    assert sample.ran == [1]


def test_wrong_options_are_told_when_the_function_is_made() -> None:
    """Unknown options, invalid values and unknown arguments in ``redact`` raise an error at import."""
    with pytest.raises(UnknownOptionError, match="_queue"):
        task(queues="mail")(sample.note)  # type: ignore[call-overload]
    with pytest.raises(OptionError, match="has 1 to 100"):
        task(queue="no such name")(sample.note)
    with pytest.raises(OptionError, match="no argument"):
        task(redact=("passwort",))(sample.pair)


def test_the_order_of_decorators_is_told() -> None:
    """The decorator below @classmethod raises an error that says what to do, because it can't know the class."""

    class Wrong:
        @classmethod
        @task
        def make(cls) -> None:
            """Never called."""

    method: Any = Wrong.__dict__["make"].__func__
    with pytest.raises(TypeError, match="above @classmethod, @staticmethod"):
        method.defer()


def test_the_sdks_stub_takes_it(queued: Queued) -> None:
    """The task is added to the queue that the decorator names."""
    welcome.options(queue="quick").defer(1)

    assert len(queued.in_queue("quick")) == 1


@task
def keep(**fields: object) -> dict[str, object]:
    """Note arguments of any name."""
    sample.ran.append(fields)
    return fields


@pytest.mark.parametrize(
    "name", ["self", "cls", "func", "args", "kwargs", "call", "calls", "options", "overrides", "body", "method"]
)
def test_an_argument_can_have_any_name(name: str) -> None:
    """A name that the library uses for its own parameters is free for the function's arguments, in every form."""
    fields: dict[str, Any] = {name: 1}
    ways: list[Any] = [
        lambda: defer(keep, **fields),
        lambda: keep.defer(**fields),
        lambda: keep.defer_async(**fields).result(30),
        lambda: keep.options(countdown=0).defer(**fields),
        lambda: keep.options(countdown=0).defer_async(**fields).result(30),
    ]
    for way in ways:
        with capture_tasks(DeferredMiddleware(app)) as tasks:
            way()
            tasks.run()
            tasks.assert_enqueued(keep, **fields)
    assert sample.ran == [fields] * len(ways)
    assert keep.call(**fields).kwargs == fields
    assert keep.options(queue="fast").call(**fields).kwargs == fields
    assert keep.options(queue="fast")(**fields) == fields


class Fields:
    """Has a method whose arguments have any name."""

    @task
    def keep(this, /, **fields: object) -> dict[str, object]:
        """Return the arguments."""
        return fields

    plain: Any = vars()["keep"]
    beneath = plain(None, self=2)
    """The result of a call while the class is made."""


def test_a_methods_argument_can_be_named_self() -> None:
    """A bound method, and a decorated method that is called while its class is made, take such arguments."""
    assert Fields.beneath == {"self": 2}
    bound: Any = Fields().keep
    assert bound(self=1) == {"self": 1}
    assert bound.call(self=1).kwargs == {"self": 1}
