"""Loading the WSGI application that ``module:callable`` names."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deferred_middleware.server.apps.loading import AppLoadError, load_application

_numbers = itertools.count()

WSGI_APP = "def app(environ, start_response):\n    return []\n"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Return a function that writes a module with a source into the current directory and returns its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(source: str) -> str:
        name = f"loaded_app_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(source)
        return name

    return write


def test_returns_the_callable(module: Callable[[str], str]) -> None:
    """The module's application is returned."""
    name = module(WSGI_APP)
    assert load_application(f"{name}:app") is sys.modules[name].app


def test_follows_dots_in_the_callable(module: Callable[[str], str]) -> None:
    """``site.wsgi`` is an attribute of an attribute, as in ``app.wsgi_app``."""
    name = module(WSGI_APP + "class site:\n    wsgi = staticmethod(app)\n")
    assert load_application(f"{name}:site.wsgi") is sys.modules[name].app


def test_takes_an_instance_with_a_call_method(module: Callable[[str], str]) -> None:
    """An instance with ``__call__``, as most frameworks use, is accepted."""
    name = module("class App:\n    def __call__(self, environ, start_response):\n        return []\napp = App()\n")
    assert callable(load_application(f"{name}:app"))


@pytest.mark.parametrize(
    ("source", "attribute", "expected"),
    [
        ("", "app", "it has no callable"),
        (WSGI_APP, "ap", "did you mean 'app'?"),
        (WSGI_APP, "wsgi_thing", "it has: app"),
        ("app = 'text'", "app", "is a str, which can't be called"),
        ("async def app(scope, receive, send): pass", "app", "async (ASGI)"),
        ("class A:\n    async def __call__(self, scope, receive, send): pass\napp = A()", "app", "async (ASGI)"),
        ("def app(): pass", "app", "looks like a factory"),
        ("def app(config=None): pass", "app", "looks like a factory"),
        ("def app(request): pass", "app", "called with (environ, start_response)"),
        ("import sys\nsys.exit(3)", "app", "called sys.exit(3) while it was imported"),
        ("\n\n1 / 0", "app", "ZeroDivisionError: division by zero"),
        ("def broken(:", "app", "SyntaxError"),
        ("import no_such_module_here", "app", "No module named 'no_such_module_here'"),
    ],
)
def test_says_what_is_wrong(module: Callable[[str], str], source: str, attribute: str, expected: str) -> None:
    """Each error is a sentence that names the module and the mistake."""
    name = module(source)
    with pytest.raises(AppLoadError) as caught:
        load_application(f"{name}:{attribute}")
    assert expected in str(caught.value)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["\n\n1 / 0", "import json\n\njson.loads('{')", "x = 1\n\ndef broken(:"])
def test_names_the_line_of_the_app_that_failed(module: Callable[[str], str], source: str) -> None:
    """An error inside the module is reported with the app's own line, even if a library raised it."""
    name = module(source)
    with pytest.raises(AppLoadError, match=rf"\({name}\.py:3\)"):
        load_application(f"{name}:app")


def test_a_missing_module_is_told_from_an_error_inside_one(module: Callable[[str], str], tmp_path: Path) -> None:
    """If the module is missing, the error names the current directory, which is the usual cause."""
    module("")
    with pytest.raises(AppLoadError) as caught:
        load_application("not_there:app")
    assert "No module named 'not_there' in the current directory" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_missing_submodule_names_its_package(module: Callable[[str], str], tmp_path: Path) -> None:
    """If a package exists but not its module, the error names the package."""
    module("")
    (tmp_path / "some_package").mkdir()
    (tmp_path / "some_package" / "__init__.py").touch()
    with pytest.raises(AppLoadError, match="in the package some_package"):
        load_application("some_package.web:app")


@pytest.mark.parametrize("spec", ["main", "main:", ":app", "main.py", "main:create_app(", "a b:app"])
def test_refuses_another_form(spec: str) -> None:
    """A spec that is not MODULE:CALLABLE is refused before anything is imported."""
    with pytest.raises(AppLoadError, match="MODULE:CALLABLE"):
        load_application(spec)


def test_a_file_name_gets_the_module_name_suggested() -> None:
    """For ``web/main.py``, a common mistake, the error suggests ``web.main:app``."""
    with pytest.raises(AppLoadError, match=r"such as web\.main:app"):
        load_application("web/main.py")


FACTORY = (
    WSGI_APP
    + """
class site:
    @staticmethod
    def make(*args, **kwargs):
        if args == ("fail",):
            raise RuntimeError("no database")
        made = lambda environ, start_response: []
        made.given = (args, kwargs)
        return made
"""
)


@pytest.mark.parametrize(
    ("call", "given"),
    [("site.make()", ((), {})), ("site.make('a b', [1], debug=True)", (("a b", [1]), {"debug": True}))],
)
def test_calls_a_factory(module: Callable[[str], str], call: str, given: object) -> None:
    """A factory is called with the literal arguments that are written."""
    loaded = load_application(f"{module(FACTORY)}:{call}")
    assert loaded.given == given  # type: ignore[attr-defined] # loaded is of the class of the test


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("site.make('fail')", r"Calling \w+:site.make failed: RuntimeError: no database \(\w+.py:8\)\."),
        ("site.make(open('x'))", "only with literal arguments"),
        ("site.make(**{})", "only with literal arguments"),
        ("site.make(", "APP is given as MODULE:CALLABLE"),
        ("(site.make)(1)(2)", "APP is given as MODULE:CALLABLE"),
        ("site.nothing()", "has no 'nothing'"),
    ],
)
def test_explains_why_a_factory_gives_no_app(module: Callable[[str], str], call: str, expected: str) -> None:
    """A factory that fails, and a call that is none, are errors of one sentence."""
    with pytest.raises(AppLoadError, match=expected):
        load_application(f"{module(FACTORY)}:{call}")
