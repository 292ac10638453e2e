"""Tests of the types of the options: that type checkers know the options that there are."""

from __future__ import annotations

import inspect

from deferred_middleware.calls.option_types import DeferOptions, TaskOptions
from deferred_middleware.calls.options import OPTION_NAMES
from deferred_middleware.enqueue import decorator


def test_type_checkers_know_every_option() -> None:
    """The types have the options of defer, with and without the underscore, and the same types of values."""
    assert tuple(DeferOptions.__annotations__) == OPTION_NAMES
    assert list(TaskOptions.__annotations__.items()) == [
        (name.removeprefix("_"), kind) for name, kind in DeferOptions.__annotations__.items()
    ]
    assert not DeferOptions.__required_keys__
    assert not TaskOptions.__required_keys__


def test_the_decorator_has_options_of_the_same_types() -> None:
    """The options that ``@task`` declares to type checkers are those of ``defer``."""
    source = inspect.getsource(decorator)
    declared = source[source.index("def task(\n") : source.index("    redact: Iterable[str] = (),\n")]

    for line in declared.splitlines()[2:]:
        name, _, kind = line.strip().removesuffix(" = None,").replace('"', "'").partition(": ")
        assert kind == TaskOptions.__annotations__[name].__forward_arg__
