"""Tests of callables: which ones can be deferred, their labels, and the error for the others."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from deferred_middleware.calls.callables import Label, agrees, check_kind, label_of
from deferred_middleware.errors import NotCallableError
from tests.support import sample
from tests.support.callables import KINDS


@pytest.mark.parametrize(("func", "label"), KINDS)
def test_every_kind_of_callable_has_a_label(func: Callable[..., Any], label: str) -> None:
    """The label names the module and the qualified name of the callable."""
    assert str(label_of(func)) == label


@pytest.mark.parametrize(
    "func",
    [
        sample.generator,
        sample.async_generator,
        functools.partial(sample.generator),
        sample.GeneratorCaller(),
    ],
)
def test_generator_functions_are_refused(func: Callable[..., Any]) -> None:
    """A generator function, which would run nothing, is refused, and the error says what to do."""
    with pytest.raises(
        NotCallableError, match=r"is a generator function.*Defer a function that iterates over the generator"
    ):
        check_kind(func)


@pytest.mark.parametrize("thing", [5, None, "text"])
def test_what_cannot_be_called_is_refused(thing: Any) -> None:
    """Anything not callable, such as a call's result, raises an error that is both a TypeError and a ValueError."""
    with pytest.raises(NotCallableError, match=r"defer\(f, x\), not defer\(f\(x\)\)") as caught:
        check_kind(thing)

    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)


def test_an_alias_left_behind_still_agrees() -> None:
    """A URL with a function's old name is accepted if the module still has the function under that name."""
    assert agrees(sample.__name__, "old_name", sample.note)


@pytest.mark.parametrize(
    ("module", "qualname"),
    [
        (sample.__name__, "pair"),
        (sample.__name__, "gone"),
        ("no_such_module", "note"),
        (sample.__name__, "Mailer.send"),
        ("os", "system"),
    ],
)
def test_another_name_does_not_agree(module: str, qualname: str) -> None:
    """A URL that names another callable, or an unloaded module, is not accepted."""
    assert not agrees(module, qualname, sample.note)


def test_a_label_is_percent_encoded_in_the_path() -> None:
    """Each part of the label is percent-encoded as one segment of the path."""
    assert Label("café", "a/b?c").path == "caf%C3%A9/a%2Fb%3Fc"
