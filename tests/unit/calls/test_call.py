"""Tests of calls: their arguments, their description, and running them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import dataclasses
import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any

import pytest
from google.appengine.ext import ndb, testbed
from hypothesis import given
from hypothesis import strategies as st

from deferred_middleware import ArgumentsError, Call, NotCallableError, UnknownOptionError, call
from deferred_middleware.errors import NeverRanError
from tests.support import sample


def test_a_call_keeps_what_it_was_given() -> None:
    """A call keeps the callable, the arguments and the options separate, and is immutable."""
    made = call(sample.note, 1, two=2, _queue="quick", _name="n1")

    assert (made.func, made.args, made.kwargs) == (sample.note, (1,), {"two": 2})
    assert (made.options.queues, made.options.name) == (("quick",), "n1")
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.args = ()  # type: ignore[misc]


def test_arguments_may_be_called_as_ours_are() -> None:
    """A function's own arguments can be named func, obj, membername, self or call."""
    made = call(sample.note, func=1, obj=2, membername=3, self=4, call=5, args=6, kwargs=7)

    made.run()

    assert sample.ran == [((), {"func": 1, "obj": 2, "membername": 3, "self": 4, "call": 5, "args": 6, "kwargs": 7})]


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        ((), {}, "missing a required argument: 'first'"),
        ((1, 2, 3), {}, "too many positional arguments"),
        ((1,), {"third": 3}, "got an unexpected keyword argument 'third'"),
        ((1,), {"first": 1}, "multiple values for argument 'first'"),
    ],
)
def test_arguments_that_do_not_fit_are_an_error(args: tuple[Any, ...], kwargs: dict[str, Any], words: str) -> None:
    """If the arguments don't fit, the error names the callable with its signature and the mismatch."""
    with pytest.raises(ArgumentsError) as caught:
        call(sample.pair, *args, **kwargs)

    assert isinstance(caught.value, TypeError)
    assert str(caught.value).startswith("tests.support.sample/pair(")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "func", [sample.Mailer().send, sample.Noting, sample.Caller("x"), functools.partial(sample.pair, 1, 2)]
)
def test_every_kind_of_callable_has_its_signature_checked(func: Any) -> None:
    """A bound method, a class, an instance and a partial have their signatures checked like a function."""
    with pytest.raises(ArgumentsError):
        call(func, 1, 2, 3)


def test_a_wrapper_is_checked_by_its_own_signature() -> None:
    """A wrapper's own signature is checked, not the wrapped one, because the wrapper may add arguments."""
    assert call(sample.decorated, 1, 2, 3).args == (1, 2, 3)


def test_a_builtin_without_a_signature_is_not_checked() -> None:
    """A builtin without a known signature is not checked."""
    assert call(dict.fromkeys, "ab").args == ("ab",)
    assert call(max, 1, 2).args == (1, 2)


@pytest.mark.parametrize(("option", "meant"), [("_countdwn", "_countdown"), ("_que", "_queue"), ("_etas", "_eta")])
def test_an_unknown_option_is_an_error_with_the_nearest_name(option: str, meant: str) -> None:
    """A misspelt option raises an error when the call is created, not when it runs."""
    with pytest.raises(UnknownOptionError) as caught:
        call(sample.pair, 1, **{option: 5})

    assert (caught.value.option, caught.value.suggestion) == (option, meant)
    assert isinstance(caught.value, TypeError)
    assert str(caught.value) == (
        f"{option} is neither an option of defer() nor an argument of tests.support.sample/pair. Did you mean {meant}?"
    )


def test_an_option_like_no_other_is_an_error_with_the_list() -> None:
    """If no option is similar, the error lists all options."""
    with pytest.raises(UnknownOptionError, match="The options are _queue, _countdown, _eta,"):
        call(sample.pair, 1, _zzz=5)  # type: ignore[call-arg] # the wrong option is the test


def test_a_misspelt_option_is_not_swallowed_by_kwargs() -> None:
    """A misspelt option is refused even if the function accepts any keyword; the error says how to pass it anyway."""
    with pytest.raises(UnknownOptionError, match=r"_countdwn looks like a misspelt.*functools\.partial.*_countdown"):
        call(sample.note, _countdwn=5)


def test_an_argument_with_an_underscore_is_the_functions() -> None:
    """An underscored name is an argument if it is a parameter of the function or resembles no option."""
    assert call(sample.takes_own_option, 1, _flavour="x").kwargs == {"_flavour": "x"}
    assert call(sample.note, _private=1).kwargs == {"_private": 1}


def test_an_option_that_is_none_is_not_given() -> None:
    """An option that is None counts as not given, as the SDK's callers expect."""
    names = (
        "queue",
        "countdown",
        "eta",
        "name",
        "target",
        "transactional",
        "retry_options",
        "headers",
        "deadline",
        "url",
    )

    made = call(sample.note, **{f"_{name}": None for name in names})

    assert made.kwargs == {}
    assert made.options == call(sample.note).options


def test_a_coroutine_is_run_to_its_end() -> None:
    """An async function's body runs, and the call returns its value."""
    assert call(sample.coroutine, 5).run() == "slept"
    assert sample.ran == [("awaited", 5)]


def test_a_partial_that_returns_a_coroutine_is_run_to_its_end() -> None:
    """If the returned value is a coroutine, it is run, even if the callable doesn't look asynchronous."""
    call(functools.partial(sample.coroutine, 6)).run()

    assert sample.ran == [("awaited", 6)]


def test_a_coroutine_is_run_where_an_event_loop_runs_already() -> None:
    """If the app's thread already runs an event loop, a task gets its own loop with the caller's context."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    outer: asyncio.AbstractEventLoop | None = None

    async def tell() -> tuple[str, bool]:
        await asyncio.sleep(0)
        return variable.get(), asyncio.get_running_loop() is outer

    async def server() -> object:
        nonlocal outer
        outer = asyncio.get_running_loop()
        variable.set("the server's")
        return call(tell).run()

    assert asyncio.run(server()) == ("the server's", False)


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), SystemExit(3), asyncio.CancelledError()])
def test_what_a_coroutine_raises_in_its_own_thread_is_the_calls(error: BaseException) -> None:
    """If a coroutine runs beside the server's loop, the call raises whatever the coroutine raises."""

    async def fail() -> None:
        raise error

    async def server() -> None:
        with pytest.raises(type(error)):
            call(fail).run()

    asyncio.run(server())


def test_a_future_of_the_loop_that_waits_is_refused() -> None:
    """A future of the blocked loop could never complete, so it raises an error and doesn't hang."""

    async def server() -> None:
        future = asyncio.get_running_loop().create_future()
        with pytest.raises(RuntimeError, match="a future of the event loop that runs in this thread"):
            call(lambda: future).run()

    asyncio.run(server())


def test_a_future_of_an_executor_is_waited_for() -> None:
    """The call waits for an executor's future, and raises the future's exception."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        begun = threading.Event()

        def work() -> str:
            begun.wait(10)
            return "worked"

        def submit() -> object:
            future = pool.submit(work)
            begun.set()
            return future

        assert Call(func=submit).run() == "worked"
        with pytest.raises(ZeroDivisionError):
            Call(func=lambda: pool.submit(divmod, 1, 0)).run()


def test_a_tasklet_is_run_to_its_end(engine: testbed.Testbed) -> None:
    """The call waits for an ndb Future."""
    engine.init_datastore_v3_stub()
    engine.init_memcache_stub()

    @ndb.tasklet  # type: ignore[untyped-decorator]
    def tasklet(value: int) -> Any:
        yield ndb.sleep(0.001)
        sample.ran.append(value)
        raise ndb.Return(value + 1)

    assert call(tasklet, 4).run() == 5
    assert sample.ran == [4]


def test_a_failure_inside_a_tasklet_is_the_calls(engine: testbed.Testbed) -> None:
    """The call raises what a tasklet raises after its first yield."""

    @ndb.tasklet  # type: ignore[untyped-decorator]
    def tasklet() -> Any:
        yield ndb.sleep(0.001)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        call(tasklet).run()


@pytest.mark.parametrize("func", [sample.generator, sample.async_generator, sample.GeneratorCaller()])
def test_generator_functions_are_refused(func: Any) -> None:
    """A generator function, which would run nothing, is refused when the call is created."""
    with pytest.raises(NotCallableError):
        call(func)


def test_a_generator_that_comes_back_unstarted_is_a_failure() -> None:
    """A wrapped generator function can't be detected early; if its generator never started, the call fails."""
    with pytest.raises(
        NeverRanError, match=r"tests\.support\.sample/hidden_generator returned a generator, and none of its body ran"
    ):
        call(sample.hidden_generator).run()


def test_some_other_generator_may_come_back() -> None:
    """A function that returns a generator from elsewhere succeeds."""
    made = Call(func=lambda: (letter for letter in "ab"))

    assert made.run() is not None


def test_the_description_is_short_and_never_fails() -> None:
    """A log line shows shortened arguments, even if a repr fails."""
    described = call(sample.note, "x" * 1000, sample.BadRepr(), key=[1, 2]).describe()

    assert described.startswith("tests.support.sample/note('xxx")
    assert described.endswith("key=[1, 2])")
    assert "BadRepr" in described
    assert len(described) < 200


def plain(first: object, second: object, third: object = 3, *, fourth: object, fifth: object = 5) -> None:
    """Take arguments of the usual kinds."""


def few(first: object = 1) -> None:
    """Take one argument."""


def by_place(first: object, /, second: object = 2) -> None:
    """Take one positional-only argument."""


def anything(first: object, *others: object, **more: object) -> None:
    """Take any arguments."""


_NAMES = st.sampled_from(["first", "second", "third", "fourth", "fifth", "sixth"])


@given(
    func=st.sampled_from([plain, few, by_place, anything]),
    args=st.lists(st.integers(), max_size=5),
    kwargs=st.dictionaries(_NAMES, st.integers(), max_size=6),
)
def test_arguments_are_taken_if_and_only_if_they_can_be_bound(
    func: Callable[..., object], args: list[int], kwargs: dict[str, int]
) -> None:
    """The fast argument check accepts exactly the arguments that ``bind`` accepts."""
    try:
        inspect.signature(func).bind(*args, **kwargs)
    except TypeError:
        with pytest.raises(ArgumentsError, match="can't be called with these arguments"):
            call(func, *args, **kwargs)
    else:
        made = call(func, *args, **kwargs)
        assert (made.func, made.args, made.kwargs) == (func, tuple(args), kwargs)
