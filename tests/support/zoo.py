"""Callables of every kind, each of which returns what it is and what it was called with.

:data:`KINDS` holds a factory for each: given a text, the state of the object that it belongs to, it returns the
callable and what a call of it returns besides the arguments.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from google.appengine.ext import ndb

from deferred_middleware import task

Ran = tuple[str, str, tuple[Any, ...], dict[str, Any]]
"""What ran, in which state, with which arguments."""


def function(*args: Any, **kwargs: Any) -> Ran:
    """Run at the top level of a module."""
    return "function", "", args, kwargs


async def coroutine(*args: Any, **kwargs: Any) -> Ran:
    """Run in an event loop."""
    await asyncio.sleep(0)
    return "coroutine", "", args, kwargs


def returns_coroutine(*args: Any, **kwargs: Any) -> Any:
    """Return what has to be awaited, twice over."""

    async def twice() -> Any:
        return coroutine(*args, **kwargs)

    return twice()


@ndb.tasklet  # type: ignore[untyped-decorator] # the SDK has no types
def tasklet(*args: Any, **kwargs: Any) -> Any:
    """Run in ndb's loop."""
    yield ndb.tasklets.sleep(0)
    raise ndb.Return(("tasklet", "", args, kwargs))


def keeps_name(func: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate as one should."""

    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return func(*args, **kwargs)

    return wrapper


def loses_name(func: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate so that the wrapper keeps a name of its own."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return func(*args, **kwargs)

    return wrapper


@keeps_name
def wrapped(*args: Any, **kwargs: Any) -> Ran:
    """Run behind a wrapper."""
    return "wrapped", "", args, kwargs


@functools.lru_cache(maxsize=0)
def cached() -> Ran:
    """Run behind a cache, which takes only what can be hashed."""
    return "cached", "", (), {}


@functools.singledispatch
def dispatched(first: object = None, /, *args: Any, **kwargs: Any) -> Ran:
    """Run by the type of the first argument; here by none in particular."""
    return "dispatched", "", (first, *args), kwargs


@task(queue="quick", redact=("password",))
def declared(*args: Any, **kwargs: Any) -> Ran:
    """Run with options of its own."""
    return "declared", "", args, kwargs


class Base:
    """Has methods of every kind, and a state."""

    def __init__(self, state: str = "") -> None:
        self.state = state

    def method(self, *args: Any, **kwargs: Any) -> Ran:
        """Run in the object."""
        return "method", self.state, args, kwargs

    def overridden(self, *args: Any, **kwargs: Any) -> Ran:
        """Run in the object, if its class has no other."""
        return "overridden", self.state, args, kwargs

    async def asynchronous(self, *args: Any, **kwargs: Any) -> Ran:
        """Run in the object and in an event loop."""
        return "asynchronous", self.state, args, kwargs

    @staticmethod
    def static(*args: Any, **kwargs: Any) -> Ran:
        """Run without the object."""
        return "static", "", args, kwargs

    @classmethod
    def of_class(cls, *args: Any, **kwargs: Any) -> Ran:
        """Run in the class."""
        return "of_class", cls.__qualname__, args, kwargs

    @keeps_name
    def wrapped(self, *args: Any, **kwargs: Any) -> Ran:
        """Run in the object, behind a wrapper."""
        return "wrapped method", self.state, args, kwargs

    @loses_name
    def renamed(self, *args: Any, **kwargs: Any) -> Ran:
        """Run in the object, behind a wrapper of another name."""
        return "renamed method", self.state, args, kwargs

    @task(queue="quick")
    def declared(self, *args: Any, **kwargs: Any) -> Ran:
        """Run in the object, with options of its own."""
        return "declared method", self.state, args, kwargs

    half = functools.partialmethod(method, "half")

    def __private(self, *args: Any, **kwargs: Any) -> Ran:
        return "private", self.state, args, kwargs

    @staticmethod
    def __private_static(*args: Any, **kwargs: Any) -> Ran:
        return "private static", "", args, kwargs

    @classmethod
    def __private_of_class(cls, *args: Any, **kwargs: Any) -> Ran:
        return "private of class", cls.__qualname__, args, kwargs

    def private(self) -> Callable[..., Ran]:
        """Return the private method."""
        return self.__private

    def private_static(self) -> Callable[..., Ran]:
        """Return the private static method."""
        return self.__private_static

    def private_of_class(self) -> Callable[..., Ran]:
        """Return the private class method."""
        return self.__private_of_class


class Derived(Base):
    """Inherits."""

    def overridden(self, *args: Any, **kwargs: Any) -> Ran:
        """Run what is inherited, and more."""
        kind, state, given, named = super().overridden(*args, **kwargs)
        return f"{kind} twice", state, given, named

    class Inner(Base):
        """Is held by a class."""


@dataclasses.dataclass(frozen=True)
class Frozen:
    """Is a value."""

    state: str

    def method(self, *args: Any, **kwargs: Any) -> Ran:
        """Run in the value."""
        return "of a dataclass", self.state, args, kwargs


class Named(NamedTuple):
    """Is a tuple."""

    state: str

    def method(self, *args: Any, **kwargs: Any) -> Ran:
        """Run in the tuple."""
        return "of a tuple", self.state, args, kwargs


class Colour(enum.Enum):
    """Is one of few."""

    RED = "red"

    def method(self, *args: Any, **kwargs: Any) -> Ran:
        """Run in the member."""
        return "of a member", self.value, args, kwargs


class Slotted:
    """Has no dictionary."""

    __slots__ = ("state",)

    def __init__(self, state: str) -> None:
        self.state = state

    def __call__(self, *args: Any, **kwargs: Any) -> Ran:
        """Run the object itself."""
        return "slotted", self.state, args, kwargs


class Instance(Base):
    """Can be called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Ran:
        """Run the object itself."""
        return "instance", self.state, args, kwargs


class AsyncInstance(Base):
    """Can be called, and what comes back awaited."""

    async def __call__(self, *args: Any, **kwargs: Any) -> Ran:
        """Run the object itself."""
        return "async instance", self.state, args, kwargs


class Reduced(Base):
    """Says itself how it is pickled."""

    def __reduce__(self) -> Any:
        return restore, (self.state,)

    def __call__(self, *args: Any, **kwargs: Any) -> Ran:
        """Run the object itself."""
        return "reduced", self.state, args, kwargs


def restore(state: str) -> Reduced:
    """Make the object anew."""
    return Reduced(state)


class Made(tuple[Any, ...]):
    """Is deferred itself: making one is the work."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Made:
        """Return what was given."""
        return super().__new__(cls, ("made", "", args, kwargs))


# What adds to the arguments itself says so in what it returns.
KINDS: dict[str, Callable[[str], tuple[Callable[..., Any], str, str]]] = {
    "function": lambda _: (function, "function", ""),
    "coroutine": lambda _: (coroutine, "coroutine", ""),
    "returns a coroutine": lambda _: (returns_coroutine, "coroutine", ""),
    "tasklet": lambda _: (tasklet, "tasklet", ""),
    "wrapped": lambda _: (wrapped, "wrapped", ""),
    "declared": lambda _: (declared, "declared", ""),
    "method": lambda state: (Base(state).method, "method", state),
    "inherited": lambda state: (Derived(state).method, "method", state),
    "overridden": lambda state: (Derived(state).overridden, "overridden twice", state),
    "asynchronous": lambda state: (Derived(state).asynchronous, "asynchronous", state),
    "unbound": lambda state: (functools.partial(Base.method, Base(state)), "method", state),
    "static, of a class": lambda _: (Base.static, "static", ""),
    "static, of an object": lambda state: (Derived(state).static, "static", ""),
    "of a class": lambda _: (Base.of_class, "of_class", "Base"),
    "of a derived class": lambda _: (Derived.of_class, "of_class", "Derived"),
    "of a class, by an object": lambda state: (Derived(state).of_class, "of_class", "Derived"),
    "of an inner class": lambda state: (Derived.Inner(state).method, "method", state),
    "wrapped method": lambda state: (Derived(state).wrapped, "wrapped method", state),
    "renamed method": lambda state: (Derived(state).renamed, "renamed method", state),
    "declared method": lambda state: (Derived(state).declared, "declared method", state),
    "private": lambda state: (Derived(state).private(), "private", state),
    "private static": lambda state: (Derived(state).private_static(), "private static", ""),
    "private of a class": lambda state: (Derived(state).private_of_class(), "private of class", "Derived"),
    "of a dataclass": lambda state: (Frozen(state).method, "of a dataclass", state),
    "of a tuple": lambda state: (Named(state).method, "of a tuple", state),
    "of a member": lambda _: (Colour.RED.method, "of a member", "red"),
    "slotted": lambda state: (Slotted(state), "slotted", state),
    "instance": lambda state: (Instance(state), "instance", state),
    "async instance": lambda state: (AsyncInstance(state), "async instance", state),
    "reduced": lambda state: (Reduced(state), "reduced", state),
    "class": lambda _: (Made, "made", ""),
}
