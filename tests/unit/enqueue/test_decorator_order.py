"""Tests of ``@task`` beneath another decorator."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from deferred_middleware import DeferredMiddleware, NotImportableError, call, defer, defer_many, task
from deferred_middleware.testing import capture_tasks
from tests.support import sample
from tests.unit.calls.test_references_proxies import Decoration, Proxy


def noted(func: Callable[..., Any]) -> Any:
    """Decorate a function as most decorators do."""

    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        sample.ran.append("proxy")
        return func(*args, **kwargs)

    return wrapper


def bare(func: Any) -> Any:
    """Decorate a function without ``functools.wraps``, but with its attributes."""

    def wrapper(*args: Any) -> Any:
        return func(*args)

    wrapper.defer = func.defer  # type: ignore[attr-defined] # a function takes any attribute
    return wrapper


@noted
@task(queue="mail", redact=["who"])
def function(who: str) -> None:
    """Note who."""
    sample.ran.append(who)


@noted
@noted
@task(queue="mail", redact=["who"])
@noted
def between(who: str) -> None:
    """Note who."""
    sample.ran.append(who)


@Decoration
@task(queue="mail", redact=["who"])
def decoration(who: str) -> None:
    """Note who."""
    sample.ran.append(who)


@Proxy
@task(queue="mail", redact=["who"])
def proxy(who: str) -> None:
    """Note who."""
    sample.ran.append(who)


@functools.lru_cache
@task(queue="mail", redact=["who"])
@noted
def cached(who: str) -> None:
    """Note who."""
    sample.ran.append(who)


@bare
@task
def unknown(who: str) -> None:
    """Note who."""
    sample.ran.append(who)


class Shop:
    """Has methods that are decorated in the wrong order."""

    @noted
    @task(queue="mail")
    def sell(self, what: str) -> None:
        """Note what."""
        sample.ran.append(what)

    @staticmethod
    @noted
    @task
    def count(what: str) -> None:
        """Note what."""
        sample.ran.append(what)

    @classmethod
    @noted
    @task
    def close(cls, what: str) -> None:
        """Note what."""
        sample.ran.append(what)

    @Proxy
    @task(queue="mail", redact=["what"])
    def wrap(self, what: str) -> None:
        """Note what."""
        sample.ran.append(what)


WAYS: dict[str, Callable[[Any, str], object]] = {
    "defer(f)": lambda f, who: defer(f, who),
    "f.defer": lambda f, who: f.defer(who),
    "f.defer_async": lambda f, who: f.defer_async(who).result(30),
    "f.call": lambda f, who: defer_many([f.call(who)]),
    "f.options": lambda f, who: f.options(queue="mail").defer(who),
}
DECORATED = {
    "function": (function, 1),
    "between": (between, 3),
    "decoration": (decoration, 1),
    "proxy": (proxy, 1),
    "cached": (cached, 1),
}


def site(environ: Any, start_response: Any) -> list[bytes]:
    """Answer requests that are not tasks."""
    start_response("404 Not Found", [])
    return []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", DECORATED)
def test_the_task_runs_what_the_module_holds(name: str, way: str) -> None:
    """However the function is deferred, the decorator above @task runs, and the options of @task hold."""
    func, times = DECORATED[name]
    with capture_tasks(DeferredMiddleware(site)) as tasks:
        WAYS[way](func, way)

        tasks.assert_enqueued(func, way, _queue="mail")
        assert way not in call(func, way).describe()
        tasks.run()

    assert sample.ran == [*["proxy"] * times, way]


def test_a_call_and_a_direct_call_are_of_what_the_module_holds() -> None:
    """Nor do ``call`` and the copy with other options bypass the decorator."""
    assert function.call("ann").func is function
    function.options(countdown=1)("ann")

    assert sample.ran == ["proxy", "ann"]


def test_a_decorator_that_hides_the_function_is_an_error() -> None:
    """If the module's object doesn't say that it wraps the function, the error says what to do."""
    with capture_tasks(), pytest.raises(NotImportableError, match="put @task on top"):
        unknown.defer("ann")


@pytest.mark.parametrize("method", ["defer", "defer_async", "call", "options"])
@pytest.mark.parametrize("name", ["sell", "count", "close"])
def test_in_a_class_the_error_says_that_task_comes_first(name: str, method: str) -> None:
    """A decorator above @task hides the object that a method belongs to, so the call can't be made."""
    with pytest.raises(TypeError, match=rf"Shop\.{name}\.{method}: .*put @task on top"):
        getattr(getattr(Shop(), name), method)()


def test_in_a_class_defer_itself_works_with_the_options() -> None:
    """A plain defer() of such a method runs all decorators."""
    with capture_tasks(DeferredMiddleware(site)) as tasks:
        for method in (Shop().sell, Shop().wrap):
            defer(method, "tea")
            assert tasks.enqueued[-1].queue == "mail"
            tasks.run()
        assert "tea" not in call(Shop().wrap, "tea").describe()

    assert sample.ran == ["proxy", "tea", "proxy", "tea"]
