"""Callables of every kind, as an app's modules hold them, and a record of what ran."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from deferred_middleware import current_task, task

ran: list[Any] = []
"""What the callables noted when they were run."""


def note(*args: Any, **kwargs: Any) -> None:
    """Note the arguments."""
    ran.append((args, kwargs))


def pair(first: object, second: object = None) -> None:
    """Note two arguments."""
    ran.append((first, second))


def takes_own_option(value: object, _flavour: str = "plain") -> None:
    """Note a value and an argument with a leading underscore."""
    ran.append((value, _flavour))


async def coroutine(value: object) -> str:
    """Note the value from inside an event loop."""
    import asyncio

    await asyncio.sleep(0)
    ran.append(("awaited", value))
    return "slept"


def generator() -> Iterator[int]:
    """Never run: it would note something when gone through."""
    ran.append("generator")
    yield 1


async def async_generator() -> AsyncIterator[int]:
    """Never run: it would note something when gone through."""
    ran.append("async generator")
    yield 1


def hides_generator(func: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that it doesn't look like a generator function any more."""

    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return func(*args, **kwargs)

    return wrapper


@hides_generator
def hidden_generator() -> Iterator[int]:
    """Look like a plain function, and return a generator."""
    ran.append("hidden generator")
    yield 1


def raises(error: BaseException) -> None:
    """Raise what was given."""
    raise error


def raises_new(kind: type[BaseException], *args: Any) -> None:
    """Make an exception and raise it."""
    raise kind(*args)


def without_wraps(func: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate without functools.wraps, so that the wrapper keeps its own, unfindable name."""

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return func(*args, **kwargs)

    return wrapper


@without_wraps
def badly_decorated() -> None:
    """Stand behind a decorator that hides the name."""


@hides_generator
def decorated(value: object) -> None:
    """Note the value, behind a decorator that keeps the name."""
    ran.append(("decorated", value))


undecorated: Callable[..., Any] = decorated.__wrapped__  # type: ignore[attr-defined]


class Mailer:
    """Has methods of every kind."""

    def __init__(self, sender: str = "me") -> None:
        self.sender = sender

    def send(self, to: str) -> None:
        """Note the mail."""
        ran.append((self.sender, to))

    def __secret(self, to: str) -> None:
        ran.append(("secret", self.sender, to))

    @staticmethod
    def static(to: str) -> None:
        """Note a static call."""
        ran.append(("static", to))

    @staticmethod
    def __secret_static(to: str) -> None:
        ran.append(("secret static", to))

    @classmethod
    def build(cls, to: str) -> None:
        """Note a class method's call."""
        ran.append((cls.__name__, to))

    @classmethod
    def __secret_build(cls, to: str) -> None:
        ran.append(("secret", cls.__name__, to))

    @hides_generator
    def wrapped(self, to: str) -> None:
        """Note a call through a wrapper that keeps the name."""
        ran.append(("wrapped", self.sender, to))

    @without_wraps
    def renamed(self, to: str) -> None:
        """Note a call through a wrapper whose name is 'wrapper'."""
        ran.append(("renamed", self.sender, to))

    def collides(self, obj: str, membername: str) -> None:
        """Take the argument names that the older library's invoke_member uses itself."""
        ran.append((self.sender, obj, membername))

    def secrets(self) -> list[Callable[..., Any]]:
        """Return the private methods, as code inside the class sees them."""
        return [self.__secret, self.__secret_static, self.__secret_build]


class Caller:
    """An instance that can be called."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, value: object) -> None:
        """Note the call."""
        ran.append((self.name, value))


class GeneratorCaller:
    """An instance whose call is a generator."""

    def __call__(self) -> Iterator[int]:
        """Never run."""
        ran.append("generator call")
        yield 1


class Noting:
    """A class that is deferred itself: making an instance is the work."""

    def __init__(self, value: object) -> None:
        ran.append(("made", value))


class Holder:
    """Holds whatever it is given, such as a socket."""

    def __init__(self, **attributes: object) -> None:
        self.__dict__.update(attributes)


class BadLoader:
    """Pickles, and raises what it was given when it is loaded."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return raises, (self.error,)


class BadRepr:
    """Has a repr that fails."""

    def __repr__(self) -> str:
        raise ValueError("no repr")


@task(redact=("password",))
def sign_in(user: str, password: str) -> None:
    """Note a user, and a password that no log may show."""
    ran.append(("signed in", user, password))


def notes_its_circumstances() -> None:
    """Note the datastore namespace, what the current task knows of its limits, and what its request says."""
    from google.appengine.api import namespace_manager

    context = current_task()
    assert context is not None
    ran.append(
        {
            "namespace": namespace_manager.get_namespace(),
            "queue": context.queue,
            "max_attempts": context.max_attempts,
            "retry_limit": context.retry_limit,
            "deadline_seconds": context.deadline_seconds,
            "host": context.request.host,
            "own_header": context.request.headers.get("X-Own"),
        }
    )


old_name = note
"""An alias that was left behind when the function was renamed."""


def nested() -> Callable[[], None]:
    """Return a function that only exists in here."""

    def inner() -> None:
        ran.append("inner")

    return inner


anonymous: Callable[[], None] = lambda: ran.append("lambda")  # noqa: E731 - the lambda is what is tested


def changes_then_postpones(values: list[int]) -> None:
    """Change the argument, and ask for another attempt."""
    from deferred_middleware import RetryLater

    values.append(2)
    raise RetryLater(60)


async def notes_its_task(label: str) -> None:
    """Note the label of the current task here, in a task of the event loop's, and in a thread of its pool."""
    import asyncio

    from deferred_middleware import current_task

    async def inner() -> Any:
        await asyncio.sleep(0)
        return current_task()

    seen = [current_task(), *await asyncio.gather(inner(), asyncio.create_task(inner()))]
    seen.append(await asyncio.to_thread(current_task))
    ran.append((label, [context and context.name for context in seen]))
