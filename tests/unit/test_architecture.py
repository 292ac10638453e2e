"""Tests of the package's shape: which module may import which, and how long they are."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "deferred_middleware"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))
}

# Each row may import the rows before it, and of its own row only what is said.
LAYERS: list[dict[str, set[str]]] = [
    {"errors": set(), "protocol": set(), "hooks": set(), "secretkeys": set(), "picklesketch": set()},
    {
        "answers": set(),
        "conversions": set(),
        "attempts": set(),
        "randomness": set(),
        "moulds": set(),
        "awaiting": set(),
        "alarm": set(),
        "processend": set(),
        "pending": {"alarm", "processend"},
        "scope": set(),
        "report": set(),
    },
    {"settings": set(), "callables": set(), "unpicklable": set(), "rejections": {"callables"}},
    {"arguments": set()},
    {"namespaces": set(), "overflow": set()},
    {"options": set(), "allowing": set()},
    {"body": set()},
    {"calls": set(), "signing": set(), "trust": {"signing"}, "cloudtasks": set(), "sweeping": set(), "carrying": set()},
    {"context": set(), "warmup": set()},
    {"outcomes": set(), "retrying": set(), "tracing": set()},
    {"deadletters": set()},
    {"logs": set(), "delivery": set()},
    {"payload": set(), "routing": set(), "transactions": set()},
    {"legacy": set(), "levels": set(), "plans": set()},
    {"preparing": set(), "sending": set(), "execution": set()},
    {"adding": set()},
    {"grouping": set()},
    {"futures": set()},
    {"bulk": set()},
    {"batches": set()},
    {"enqueue": set(), "again": set()},
    {"handler": set(), "codecheck": set(), "decorator": set()},
    {"middleware": set()},
    {
        "contrib.__init__": set(),
        "contrib.mounting": set(),
        "contrib.flask": {"contrib.mounting"},
        "contrib.webapp2": {"contrib.mounting"},
    },
    {"compat.__init__": set(), "compat.deferred": set(), "compat.tasks": {"contrib.webapp2"}},
    {
        "contrib.django.__init__": set(),
        "contrib.django.apps": set(),
        "contrib.django.views": set(),
        "contrib.django.urls": {"contrib.django.views"},
        "contrib.django.middleware": {"contrib.django.views"},
        "contrib.django.backend": set(),
    },
    {
        "testing.records": set(),
        "testing.stub": set(),
        "testing.expectations": {"testing.records"},
        "testing.delivering": {"testing.records", "testing.stub"},
        "testing.capture": {"testing.records", "testing.stub", "testing.expectations", "testing.delivering"},
        "testing.__init__": {"testing.records", "testing.capture", "testing.delivering"},
        "pytest_plugin": {"testing"},
    },
]
NAMES = [name for layer in LAYERS for name in layer]
# The local server sees tasks as opaque bytes: nothing of calls and payloads may reach it.
OF_THE_SERVER = {"errors", "protocol", "picklesketch", "__version__"}


def allowed_for(name: str) -> set[str]:
    """Return what a module of the package may import of it."""
    before: set[str] = set()
    for layer in LAYERS:
        if name in layer:
            return before | layer[name]
        before |= set(layer)
    raise AssertionError(f"{name} has no place: add it to a layer")


def imports_of(path: Path) -> set[str]:
    """Return the package's modules that a file imports, wherever in it and also for type checking."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "deferred_middleware":
                found |= {alias.name for alias in node.names}
            elif node.module and node.module.startswith("deferred_middleware."):
                found.add(node.module.removeprefix("deferred_middleware."))
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.removeprefix("deferred_middleware.")
                for alias in node.names
                if alias.name.startswith("deferred_middleware.")
            }
    return found


@pytest.mark.parametrize("name", NAMES)
def test_imports_run_one_way(name: str) -> None:
    """A module imports only from the layers below its own."""
    assert imports_of(MODULES[f"deferred_middleware.{name}"]) <= allowed_for(name)


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("deferred_middleware.server")])
def test_the_server_knows_only_the_wire(module: str) -> None:
    """The local server imports errors, protocol and the sketch of a pickle, and its own modules."""
    theirs = {name for name in imports_of(MODULES[module]) if not name.startswith("server")}

    assert theirs <= OF_THE_SERVER


def test_every_module_has_its_place() -> None:
    """No module stands outside the layers, the server and the command."""
    placed = {f"deferred_middleware.{name}" for name in NAMES}
    others = {"deferred_middleware.__init__", "deferred_middleware.__main__", "deferred_middleware.cli"}
    apart = ("deferred_middleware.server", "deferred_middleware.commands")

    assert {m for m in MODULES if not m.startswith(apart)} == placed | others


def test_the_command_line_knows_its_commands_only() -> None:
    """The command line's module imports the commands and errors alone."""
    for name in imports_of(MODULES["deferred_middleware.cli"]):
        assert name.startswith("commands") or name in {"errors", "__version__"}


@pytest.mark.parametrize("module", MODULES)
def test_nothing_of_the_server_unpickles(module: str) -> None:
    """Only the payload module loads a pickle."""
    if module == "deferred_middleware.payload":
        return
    tree = ast.parse(MODULES[module].read_text())

    loads = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr in ("loads", "Unpickler", "load")]

    assert not [n for n in loads if isinstance(n.value, ast.Name) and n.value.id in ("pickle", "marshal", "dill")]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_one_subject(module: str) -> None:
    """A module has a docstring and fewer than 400 lines."""
    text = MODULES[module].read_text()

    assert ast.get_docstring(ast.parse(text))
    assert text.count("\n") < 400
