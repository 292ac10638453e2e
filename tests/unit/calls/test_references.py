"""Tests of references: how a payload names a callable, and the error for one that import cannot find."""

from __future__ import annotations

import functools
import pickle
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deferred_middleware import NotImportableError
from deferred_middleware.calls.callables import agrees, label_of
from deferred_middleware.calls.references import explain_unimportable, reference_to
from tests.support import sample
from tests.support.callables import KINDS


@pytest.mark.parametrize(("func", "label"), KINDS)
def test_a_reference_survives_the_pickle(func: Callable[..., Any], label: str) -> None:
    """A loaded callable has the same type and label as the original, and agrees with the URL's names."""
    loaded = pickle.loads(pickle.dumps(reference_to(func)))

    assert str(label_of(loaded)) == label
    assert type(loaded) is type(func)
    module, _, qualname = label.partition("/")
    assert agrees(module, qualname, loaded)


def test_a_method_behind_a_renaming_wrapper_is_found_by_its_attribute() -> None:
    """A method whose function has another name is referred to by the attribute that holds it."""
    loaded = pickle.loads(pickle.dumps(reference_to(sample.Mailer("ann").renamed)))

    loaded("bob")

    assert sample.ran == [("renamed", "ann", "bob")]


@pytest.mark.parametrize(
    ("func", "words"),
    [
        (sample.anonymous, "is a lambda"),
        (sample.nested(), "is defined inside a function"),
        (sample.badly_decorated, "functools.wraps"),
        (sample.undecorated, "is not the object that import finds under that name"),
        (functools.partial(sample.nested()), "is defined inside a function"),
    ],
)
def test_what_import_cannot_find_is_explained(func: Callable[..., Any], words: str) -> None:
    """The error names the callable, the problem and the solution."""
    with pytest.raises(NotImportableError) as caught:
        explain_unimportable(func)

    assert isinstance(caught.value, pickle.PicklingError)
    assert str(caught.value).startswith(str(label_of(func)))
    assert words in str(caught.value)


def test_a_class_that_is_gone_is_explained() -> None:
    """If a class is missing from its module, the error names the class and includes the import error."""
    missing = type("Missing", (), {"__module__": sample.__name__, "__call__": lambda self: None})

    with pytest.raises(NotImportableError, match=r"tests\.support\.sample/Missing can't be found by import"):
        explain_unimportable(missing())


@pytest.mark.parametrize("func", [func for func, _ in KINDS])
def test_what_import_finds_is_not_blamed(func: Callable[..., Any]) -> None:
    """A callable that import can find raises no error."""
    explain_unimportable(func)


def test_a_method_bound_by_hand_is_refused() -> None:
    """A bound method that its object's class doesn't have is refused, because the task couldn't find it."""
    stray = types.MethodType(sample.note, sample.Mailer())

    with pytest.raises(
        NotImportableError, match=r"tests\.support\.sample/Mailer\.note is a bound method that is not an attribute"
    ):
        reference_to(stray)


def run_main(tmp_path: Path, *arguments: str, body: str) -> subprocess.CompletedProcess[str]:
    """Run a program that creates callables in its own ``__main__``."""
    program = f"""
import functools
from deferred_middleware.calls.callables import label_of
from deferred_middleware.calls.references import outside_main
def work(): pass
class Thing:
    def method(self): pass
    def __call__(self): pass
if __name__ == "__main__":
    try:
        print(label_of(outside_main({body})))
    except Exception as error:
        print(type(error).__name__, error)
"""
    (tmp_path / "program.py").write_text(program)
    return subprocess.run(
        [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )


@pytest.mark.parametrize("body", ["work", "Thing", "functools.partial(work)"])
def test_a_function_of_a_module_run_with_m_is_the_modules(tmp_path: Path, body: str) -> None:
    """With ``python -m``, a function of ``__main__`` is deferred under its importable name."""
    result = run_main(tmp_path, "-m", "program", body=body)

    assert result.stdout.startswith("program/")


@pytest.mark.parametrize("body", ["work", "Thing", "Thing()", "Thing().method", "functools.partial(work)"])
def test_a_function_of_a_script_is_refused(tmp_path: Path, body: str) -> None:
    """A function in a script's ``__main__`` is refused, because the task's ``__main__`` is another script."""
    result = run_main(tmp_path, "program.py", body=body)

    assert "NotImportableError __main__/" in result.stdout
    assert "to a module, and import it from there." in result.stdout


def test_a_lambda_of_a_script_is_called_a_lambda(tmp_path: Path) -> None:
    """If a callable has two problems, the error names the one that moving it to a module doesn't solve."""
    result = run_main(tmp_path, "program.py", body="lambda: None")

    assert "is a lambda" in result.stdout
