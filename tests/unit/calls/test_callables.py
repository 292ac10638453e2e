"""Tests of callables: which ones can be deferred, their labels, and the error for the others."""

from __future__ import annotations

import functools
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deferred_middleware.calls.callables import Label, agrees, check_kind, explain_unimportable, label_of, reference_to
from deferred_middleware.errors import NotCallableError, NotImportableError
from tests.support import sample

SECRET, SECRET_STATIC, SECRET_BUILD = sample.Mailer("ann").secrets()

KINDS: list[tuple[Callable[..., Any], str]] = [
    (sample.note, "tests.support.sample/note"),
    (sample.coroutine, "tests.support.sample/coroutine"),
    (sample.decorated, "tests.support.sample/decorated"),
    (functools.partial(sample.note, 1), "tests.support.sample/note"),
    (functools.partial(functools.partial(sample.Mailer("ann").send), "bob"), "tests.support.sample/Mailer.send"),
    (sample.Mailer("ann").send, "tests.support.sample/Mailer.send"),
    (sample.Mailer("ann").wrapped, "tests.support.sample/Mailer.wrapped"),
    (SECRET, "tests.support.sample/Mailer.__secret"),
    (functools.partial(SECRET, "bob"), "tests.support.sample/Mailer.__secret"),
    (sample.Mailer.static, "tests.support.sample/Mailer.static"),
    (SECRET_STATIC, "tests.support.sample/Mailer.__secret_static"),
    (sample.Mailer.build, "tests.support.sample/Mailer.build"),
    (SECRET_BUILD, "tests.support.sample/Mailer.__secret_build"),
    (sample.Caller("ann"), "tests.support.sample/Caller"),
    (sample.Noting, "tests.support.sample/Noting"),
    (print, "builtins/print"),
    (os.getpid, "posix/getpid"),
    ([].append, "builtins/list.append"),
    ("-".join, "builtins/str.join"),
    (dict.fromkeys, "builtins/dict.fromkeys"),
]


@pytest.mark.parametrize(("func", "label"), KINDS)
def test_every_kind_of_callable_has_a_label(func: Callable[..., Any], label: str) -> None:
    """The label names the module and the qualified name of the callable."""
    assert str(label_of(func)) == label


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
    import types

    stray = types.MethodType(sample.note, sample.Mailer())

    with pytest.raises(
        NotImportableError, match=r"tests\.support\.sample/Mailer\.note is a bound method that is not an attribute"
    ):
        reference_to(stray)


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


def run_main(tmp_path: Path, *arguments: str, body: str) -> subprocess.CompletedProcess[str]:
    """Run a program that creates callables in its own ``__main__``."""
    program = f"""
import functools
from deferred_middleware.calls.callables import outside_main, label_of
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
