"""What the server reads from an app.yaml, and the errors for a wrong one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deferred_middleware.server.config.app_yaml import AppYaml, AppYamlError, read_app_yaml
from tests.support.repository import ROOT

RUNTIME = f"runtime: python3{sys.version_info.minor}\n"
Read = Callable[[str], AppYaml]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Return a function that parses a text as an app.yaml."""

    def parsed(text: str) -> AppYaml:
        path = tmp_path / "app.yaml"
        path.write_text(text)
        return read_app_yaml(path)

    return parsed


@pytest.mark.parametrize(("given", "expected"), [("lib", "{0}/lib"), ("lib:/x:../y", "{0}/lib:/x:{0}/../y")])
def test_a_relative_pythonpath_is_in_the_files_folder(read: Read, tmp_path: Path, given: str, expected: str) -> None:
    """Entries of PYTHONPATH are in the folder of the file, wherever the command is given."""
    found = read(RUNTIME + f"env_variables:\n  PYTHONPATH: {given}\n")
    assert found.env_variables["PYTHONPATH"] == expected.format(tmp_path)


def test_what_is_used_is_understood(read: Read, tmp_path: Path) -> None:
    """The service, app, directory and environment come from the file."""
    found = read(
        RUNTIME + "service: background\n"
        "app_engine_apis: true\n"
        "entrypoint: gunicorn -b :$PORT --threads 8 work.wsgi:application\n"
        "env_variables:\n"
        "  COLOR: blue\n"
        "  NUMBER: 7\n"
        "  EMPTY: ''\n"
        "handlers:\n"
        "- url: /.*\n"
        "  script: auto\n"
        "  secure: always\n"
    )
    assert found == AppYaml(
        path=tmp_path / "app.yaml",
        service="background",
        app="work.wsgi:application",
        directory=tmp_path,
        env_variables={"COLOR": "blue", "NUMBER": "7", "EMPTY": ""},
        notes=(),
    )


def test_what_is_left_out_is_the_platforms_default(read: Read) -> None:
    """Without service and entrypoint, the file means ``main:app`` in the default service."""
    found = read(RUNTIME)
    assert (found.service, found.app, found.env_variables) == ("default", "main:app", {})


def test_the_older_name_of_a_service_is_understood(read: Read) -> None:
    """``module`` is accepted as the older name of ``service``."""
    assert read(RUNTIME + "module: background\n").service == "background"


def test_gunicorn_may_change_the_folder(read: Read, tmp_path: Path) -> None:
    """A relative ``--chdir`` in the entrypoint is relative to the file's directory."""
    (tmp_path / "src").mkdir()
    assert read(RUNTIME + "entrypoint: gunicorn --chdir src main:app\n").directory == tmp_path / "src"


@pytest.mark.parametrize(
    ("field", "name"),
    [
        # The SDK's parser doesn't know this field.
        ("vpc_access:\n  network_interface:\n    network: default\n", "vpc_access"),
        ("automatic_scaling:\n  min_instances: many\n  max_instances: 2\n", "automatic_scaling"),
        ("instance_class: F2\n", "instance_class"),
        ("inbound_services: [warmup]\n", "inbound_services"),
    ],
)
def test_what_is_not_used_is_noted(read: Read, field: str, name: str) -> None:
    """An unused field may hold any value, is noted by name, and doesn't affect the other fields."""
    found = read(f"{RUNTIME}{field}service: background\n")
    assert found.service == "background"
    assert f"not used by the local server: {name}." in found.notes


def test_the_bundled_services_need_no_note(read: Read) -> None:
    """Bundled services, which the local server provides, cause no note."""
    assert read(RUNTIME + "app_engine_bundled_services:\n- memcache\n- datastore\n").notes == ()


def test_static_files_and_logins_are_handlers(read: Read) -> None:
    """The handlers are kept in their order, and need no note."""
    found = read(
        RUNTIME + "handlers:\n- url: /static\n  static_dir: static\n"
        "- url: /favicon\\.ico\n  static_files: favicon.ico\n  upload: favicon\\.ico\n"
        "- url: /admin\n  script: auto\n  login: admin\n- url: /.*\n  script: auto\n"
    )
    assert [(rule.pattern, rule.file, rule.login) for rule in found.handlers] == [
        ("(?:/static)/(.*)", r"\1", "optional"),
        (r"/favicon\.ico", "favicon.ico", "optional"),
        ("/admin", None, "admin"),
        ("/.*", None, "optional"),
    ]
    assert found.notes == ()


def test_handlers_that_the_app_answers_are_left_out(read: Read) -> None:
    """If no handler is static or has a login, the app gets every request as it is."""
    assert read(RUNTIME + "handlers:\n- url: /.*\n  script: auto\n").handlers == ()


@pytest.mark.parametrize(
    ("handler", "problem"),
    [
        ("- url: /a/(.*)\n  static_files: a/\\2\n  upload: a/.*\n", r"static_files a/\\2 can't be used with url"),
        ("- url: /a\n  static_files: a\\d\n  upload: a\n", "bad escape"),
    ],
)
def test_a_static_handler_that_can_not_work_is_told(read: Read, handler: str, problem: str) -> None:
    """A template with a group that the URL lacks ends the server with the file and the line."""
    with pytest.raises(AppYamlError, match=problem) as raised:
        read(RUNTIME + "handlers:\n" + handler)
    assert "app.yaml, line 2" in str(raised.value)


def test_another_python_is_noted(read: Read) -> None:
    """A note says if the runtime differs from the Python that runs the server."""
    (note,) = read("runtime: python37\n").notes
    assert note.startswith("runtime is python37; the local server runs it with its own Python, python3")


def test_includes_bring_their_variables(read: Read, tmp_path: Path) -> None:
    """Variables of included files, also nested ones, are added and override the including file's, as when deployed."""
    (tmp_path / "env.yaml").write_text("env_variables:\n  A: env\n  B: env\nincludes:\n- more\n- env.yaml\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "include.yaml").write_text("env_variables:\n  C: more\n")
    found = read(RUNTIME + "includes:\n- env.yaml\nenv_variables:\n  A: app\n  D: app\n")
    assert found.env_variables == {"A": "env", "B": "env", "C": "more", "D": "app"}


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("", None, "it is empty"),
        ("# nothing\n", None, "it is empty"),
        ("- a\n- b\n", 1, "it takes fields"),
        ("runtime: python312\n\tservice: a\n", 2, "it is not YAML"),
        ("service: background\n", 1, 'You must specify a "runtime" field'),
        ("service: a\nruntime: python27\n", 2, "runtime is 'python27'; the local server serves Python 3 only."),
        (RUNTIME + "service: Back_ground\n", 2, "service is 'Back_ground': it takes up to 63 lower-case letters"),
        (RUNTIME + "service: a\nmodule: b\n", 3, "Only one of the two fields"),
        (RUNTIME + "service: a\nservice: b\n", 3, "Duplicate attribute 'service'."),
        (RUNTIME + "env_varables:\n  A: b\n", 2, "there is no field env_varables; did you mean env_variables?"),
        (RUNTIME + "env_variables:\n  A: b\n  C:\n", 4, "environment variable C takes a text"),
        (RUNTIME + "env_variables:\n  A: [b]\n", 3, "environment variable A takes a text"),
        (RUNTIME + "env_variables:\n- A: b\n", 3, "env_variables is '[]': it takes NAME: value"),
        (RUNTIME + "handlers:\n- url: /a\n", 3, "Unknown url handler type"),
        (RUNTIME + "entrypoint:\n  shell: gunicorn main:app\n", 3, "entrypoint takes a command"),
        (
            RUNTIME + "service: a\nentrypoint: python main.py\n",
            3,
            "the entrypoint 'python main.py' can't be served here: it names no WSGI app as MODULE:CALLABLE. "
            "Use an entrypoint such as 'gunicorn -b :$PORT main:app', or serve the app as MODULE:CALLABLE instead of "
            "this file.",
        ),
        (RUNTIME + "entrypoint: gunicorn --chdir nowhere main:app\n", 2, "there is no directory"),
        (RUNTIME + "includes:\n- missing.yaml\n", 2, "there is no"),
        ("queue:\n- name: mail\n", 1, "this is a queue.yaml; give it with --queue-yaml."),
        ("---\nruntime: python312\n---\nruntime: python312\n", 3, "it is not YAML"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(
    read: Read, tmp_path: Path, text: str, line: int | None, expected: str
) -> None:
    """An error names the file, the line, and the value that belongs there."""
    with pytest.raises(AppYamlError) as caught:
        read(text)
    assert expected in str(caught.value)
    assert (caught.value.path, caught.value.line) == (str(tmp_path / "app.yaml"), line)
    assert str(caught.value).startswith(f"{tmp_path / 'app.yaml'}{f', line {line}' if line else ''}: ")


def test_an_error_in_an_included_file_names_it(read: Read, tmp_path: Path) -> None:
    """An error in an included file names that file."""
    (tmp_path / "env.yaml").write_text("\nenv_variables: none\n")
    with pytest.raises(AppYamlError) as caught:
        read(RUNTIME + "includes: [env.yaml]\n")
    assert (caught.value.path, caught.value.line) == (str(tmp_path / "env.yaml"), 2)


@pytest.mark.parametrize("path", ["examples/flask", "examples/gallery", "examples/webapp2", "examples/django"])
def test_the_examples_files_are_understood(path: str) -> None:
    """The examples' app.yaml files can be served."""
    found = [read_app_yaml(file) for file in sorted((ROOT / path).glob("*.yaml")) if "queue" not in file.name]
    assert found
    assert {one.service for one in found} <= {"default", "background"}
