"""Which app an entrypoint in an app.yaml serves."""

from __future__ import annotations

import pytest

from deferred_middleware.server.config.app_yaml import EntrypointApp, parse_entrypoint


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
        ("gunicorn 'main:make_app()'", "it calls a factory"),
        ("gunicorn 'main:app", "it is not a command"),
    ],
)
def test_what_names_no_app_is_told(command: str, reason: str) -> None:
    """A command that doesn't name an app is refused with the reason."""
    with pytest.raises(ValueError, match=reason):
        parse_entrypoint(command)
