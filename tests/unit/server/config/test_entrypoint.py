"""Which app an entrypoint in an app.yaml serves."""

from __future__ import annotations

import contextlib
import io
import shlex

import gunicorn.config  # type: ignore[import-untyped] # it has no types
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from deferred_middleware.server.config.entrypoint import _GUNICORN_FLAGS, EntrypointApp, parse_entrypoint


@pytest.mark.parametrize(
    ("command", "app"),
    [
        ("gunicorn -b :$PORT main:app", "main:app"),
        ("exec gunicorn --bind=:$PORT --workers 1 --threads 8 mysite.wsgi:application", "mysite.wsgi:application"),
        ("PYTHONUNBUFFERED=1 python -m gunicorn main:app --worker-class=gthread", "main:app"),
        ("gunicorn -c gunicorn.conf.py -k egg:gunicorn#sync main:site.wsgi", "main:site.wsgi"),
        ("gunicorn -b :$PORT -w 2 'main:app'", "main:app"),
        ("python manage.py migrate && gunicorn mysite.wsgi:application", "mysite.wsgi:application"),
        ("gunicorn -b :$PORT mysite.wsgi", "mysite.wsgi:application"),
        ("gunicorn main:app -c python:conf.gunicorn", "main:app"),
        ("gunicorn main:app --config=python:conf.gunicorn", "main:app"),
        ("gunicorn main:app --bind unix:app.sock -b unix:b.sock", "main:app"),
        ("gunicorn -c python:conf main:app --logger-class my.logging:Logger", "main:app"),
        ("gunicorn -k my.workers:Worker --preload main:app", "main:app"),
        ("gunicorn -DRw2 -k gthread mysite.wsgi", "mysite.wsgi:application"),
        ("gunicorn --proxy-protocol main:app", "main:app"),
        ("gunicorn --proxy-protocol v1 main:app", "main:app"),
        ("gunicorn -b :$PORT -- main:app", "main:app"),
        ("gunicorn $OPTIONS python:app", "python:app"),
        ("pip install gunicorn && /env/bin/gunicorn main:app | tee other:app", "main:app"),
        ("gunicorn main:app 2> other:app", "main:app"),
        ("uwsgi --module main:app --http-socket unix:app", "main:app"),
        ("waitress-serve --port=$PORT main:app", "main:app"),
        ("uwsgi --http-socket :$PORT --module=main:app --master", "main:app"),
    ],
)
def test_the_app_is_found(command: str, app: str) -> None:
    """The app is found in the commands of the usual servers, whatever their other options."""
    assert parse_entrypoint(command) == EntrypointApp(app=app)


@pytest.mark.parametrize("option", ["--chdir src", "--chdir=src"])
def test_the_folder_is_found(option: str) -> None:
    """The directory of gunicorn's ``--chdir`` is returned."""
    assert parse_entrypoint(f"gunicorn {option} main:app") == EntrypointApp(app="main:app", directory="src")


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("python main.py", "names no WSGI app"),
        ("gunicorn -b :$PORT", "names no WSGI app"),
        ("gunicorn --worker-class gthread", "names no WSGI app"),
        ("uwsgi app.ini", "names no WSGI app"),
        ("gunicorn 'main:app", "it is not a command"),
    ],
)
def test_what_names_no_app_is_told(command: str, reason: str) -> None:
    """A command that doesn't name an app is refused with the reason."""
    with pytest.raises(ValueError, match=reason):
        parse_entrypoint(command)


PARSER = gunicorn.config.Config().parser()
OPTIONS = [action for action in PARSER._actions if action.option_strings and action.nargs != "?"]


@st.composite
def options(draw: st.DrawFn) -> list[str]:
    """Return one of gunicorn's options, with a value that looks like an app if it takes a text."""
    action = draw(st.sampled_from([action for action in OPTIONS if action.dest not in ("help", "version")]))
    name = draw(st.sampled_from(action.option_strings))
    if action.nargs == 0:
        return [name]
    value = draw(st.sampled_from(action.choices or ["python:conf", "unix:app", "other.module", "7"]))
    joined = f"{name}={value}" if name.startswith("--") else f"{name}{value}"
    return draw(st.sampled_from([[name, value], [joined]]))


@given(before=st.lists(options(), max_size=3), after=st.lists(options(), max_size=3))
def test_gunicorns_command_is_read_as_gunicorn_reads_it(before: list[list[str]], after: list[list[str]]) -> None:
    """The app is the one that gunicorn's own parser finds, whatever options it has."""
    words = [word for option in before for word in option]
    words += ["main:app", *(word for option in after for word in option)]
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            parsed = PARSER.parse_args(words)
        except SystemExit:
            assume(False)
    found = parse_entrypoint(shlex.join(["gunicorn", *words]))
    assert found == EntrypointApp(app=parsed.args[0], directory=parsed.chdir)


def test_gunicorns_flags_are_known() -> None:
    """Every option of gunicorn's that takes no value is known as one."""
    flags = {name for action in PARSER._actions if action.nargs == 0 for name in action.option_strings}
    assert {name for name in flags if name.startswith("--")} <= _GUNICORN_FLAGS


@pytest.mark.parametrize(
    ("command", "app"),
    [
        ("gunicorn -w 2 'main:make_app()'", "main:make_app()"),
        ("gunicorn -b :$PORT 'main:make_app(\"a b\", debug=True)'", 'main:make_app("a b", debug=True)'),
        ("waitress-serve --port=$PORT 'main:make_app()'", "main:make_app()"),
    ],
)
def test_a_factory_is_taken_with_its_call(command: str, app: str) -> None:
    """If the command calls a factory, the server calls it too."""
    assert parse_entrypoint(command).app == app
