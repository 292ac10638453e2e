"""Tests of the package's shape: which package may import which, and how large packages and modules are."""

from __future__ import annotations

import ast
import re
from collections.abc import Container, Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "deferred_middleware"

# Each package, and the packages that it may import from besides itself. Imports for type checking don't count.
EDGES = {
    "errors": "",
    "wire": "errors",
    "config": "errors wire",
    "calls": "errors wire config",
    "engines": "errors wire config calls",
    "enqueue": "errors wire config calls engines",
    "execution": "errors wire config calls engines enqueue",
    "contrib": "errors wire config calls engines enqueue execution",
    "compat": "errors wire config calls engines enqueue execution contrib",
    "testing": "errors wire config calls engines enqueue execution",
    "cli": "errors wire config calls engines enqueue execution server server.config server.admin",
    "server.store": "errors wire",
    "server.config": "errors wire server.store",
    "server.delivery": "errors wire server.store server.config",
    "server.api": "errors wire server.store server.config",
    "server.admin": "errors wire server.store server.config",
    "server.handlers": "errors wire server.store server.config",
    "server.apps": "errors wire server.store server.config server.delivery server.api server.admin server.handlers",
    "server.cloud_tasks": "errors wire server.store server.config server.delivery server.admin server.apps",
    "server.dispatch": "errors wire server.store server.config server.delivery server.api server.admin server.apps",
    "server": "errors wire server.store server.config server.delivery server.api server.admin server.handlers "
    "server.apps server.cloud_tasks server.dispatch",
}
MAX_ROOT_ENTRIES = 13
MAX_MODULES_IN_A_PACKAGE = 12
MAX_LINES = 400


def package_of(module: str) -> str:
    """Return the package of ``EDGES`` that a module belongs to; empty for the root's own modules."""
    parts = module.split(".")[1:]
    return next((".".join(parts[:n]) for n in (2, 1) if ".".join(parts[:n]) in EDGES), "")


def module_of(path: Path, package: Path = PACKAGE) -> str:
    """Return the dotted name of the module in the file ``path``."""
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_in(tree: ast.AST) -> Iterator[str]:
    """Go through the names that code imports, except for type checking."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            yield from imports_in(node)


def wrong_edges(module: str, source: str) -> list[str]:
    """Return what ``module`` imports although its package may not."""
    package = package_of(module)
    allowed = {*EDGES[package].split(), package, ""} if package else {*EDGES, ""}
    names = [name for name in imports_in(ast.parse(source)) if name.split(".")[0] == "deferred_middleware"]
    return [name for name in names if package_of(name) not in allowed]


FILES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def test_imports_run_one_way() -> None:
    """A module imports only from its own package and from those that ``EDGES`` allows to it."""
    wrong = {module: wrong_edges(module, path.read_text()) for module, path in FILES.items()}

    assert {module: names for module, names in wrong.items() if names} == {}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("deferred_middleware.errors.sdk", "from deferred_middleware.wire import protocol"),
        ("deferred_middleware.wire.protocol", "import deferred_middleware.calls.call"),
        ("deferred_middleware.calls.call", "def late():\n    from deferred_middleware.enqueue.api import defer"),
        ("deferred_middleware.server.store.rows", "from deferred_middleware.server.dispatch import scheduler"),
        ("deferred_middleware.server.supervisor", "from deferred_middleware.enqueue.api import defer"),
        ("deferred_middleware.server.api.rpc", "from deferred_middleware.server import supervisor"),
    ],
)
def test_an_import_against_the_direction_is_found(module: str, source: str) -> None:
    """The check finds an upward import, at the top of a module and in a function."""
    assert wrong_edges(module, source)


def test_an_import_for_type_checking_is_no_edge() -> None:
    """The check leaves out what only the type checker reads."""
    source = "if TYPE_CHECKING:\n    from deferred_middleware.execution.outcomes import Outcome"

    assert wrong_edges("deferred_middleware.config.hooks", source) == []


def test_packages_form_no_cycle() -> None:
    """Each package may import only packages that stand before it in ``EDGES``, or in the server after its own parts."""
    before: set[str] = set()
    for package in [*(p for p in EDGES if p not in ("cli", "server")), "server", "cli"]:
        assert set(EDGES[package].split()) <= before
        before.add(package)


def test_every_module_is_in_a_package() -> None:
    """No module stands outside the packages, except for the root's own two."""
    outside = {name for name in FILES if not package_of(name)}

    assert outside == {"deferred_middleware", "deferred_middleware.__main__"}


def test_the_root_has_few_entries() -> None:
    """A newcomer sees the whole architecture in one short listing."""
    entries = {path.name for path in PACKAGE.iterdir()} - {"__pycache__", "__main__.py", "py.typed"}

    assert len(entries) <= MAX_ROOT_ENTRIES


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES.values()}), ids=lambda path: path.name)
def test_a_package_has_few_modules(folder: Path) -> None:
    """A package has at most twelve modules, and says in one sentence what it is for."""
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))

    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= MAX_MODULES_IN_A_PACKAGE
    assert docstring
    assert folder in (PACKAGE, PACKAGE / "testing", PACKAGE / "errors") or "\n" not in docstring


def test_no_class_name_stands_twice() -> None:
    """One name is one thing: a class that is in no other class is found by its name in one place."""
    classes = [
        node.name
        for path in FILES.values()
        for outer in ast.walk(ast.parse(path.read_text()))
        if not isinstance(outer, ast.ClassDef)
        for node in ast.iter_child_nodes(outer)
        if isinstance(node, ast.ClassDef)
    ]

    assert sorted({name for name in classes if classes.count(name) > 1}) == []


LOADERS = {
    "deferred_middleware.calls.payload": {"pickle"},
    # An app process reads what the queue process, its parent, writes to a socket pair that nobody else has.
    "deferred_middleware.server.delivery.frames": {"marshal"},
}
"""The modules that load data of a format that is not safe with bytes that somebody made up, with those formats."""


def loads_in(source: str, formats: Container[str]) -> list[str]:
    """Return what a module's source loads of the given formats."""
    return [
        ast.unparse(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and node.attr in ("loads", "Unpickler", "load")
        and isinstance(node.value, ast.Name)
        and node.value.id in formats
    ]


def test_only_the_payload_module_unpickles() -> None:
    """No other module loads a pickle, and one loads marshalled data."""
    loads = {
        module: loads_in(path.read_text(), {"pickle", "marshal", "dill"} - LOADERS.get(module, set()))
        for module, path in FILES.items()
    }

    assert {module: names for module, names in loads.items() if names} == {}
    assert loads_in(FILES["deferred_middleware.calls.payload"].read_text(), {"pickle"})


def test_a_module_is_one_subject() -> None:
    """A module has a docstring, and at most 400 lines."""
    sources = {module: path.read_text() for module, path in FILES.items()}

    assert [module for module, source in sources.items() if not ast.get_docstring(ast.parse(source))] == []
    assert [module for module, source in sources.items() if source.count("\n") > MAX_LINES] == []


SDK_PRIVATE_NAMES = "deferred_middleware.server.api.sdk_datastore"
"""The one module that may use private names of the SDK. It says why, and has tests of its own."""


def private_names_of_the_sdk(source: str) -> list[str]:
    """Return what looks like a private name of the SDK in a module's source."""
    tree = ast.parse(source)
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("google.")
        for alias in node.names
    }
    found = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and re.match("_(?!_)", node.attr)
        and ast.unparse(node.value).split(".")[0].split("(")[0] in imported
    ]
    found += [name for name in imported if re.match("_(?!_)", name)]
    # Names that Python mangles, the methods of the SDK's stubs, and a field of theirs.
    return found + re.findall(r"\b_[A-Z][A-Za-z]*__\w+|_Dynamic_\w*|\b_txn_map\b", source)


def test_no_private_name_of_the_sdk_is_used() -> None:
    """The package reads, writes and patches only what the SDK makes public, except in one module."""
    found = {module: private_names_of_the_sdk(path.read_text()) for module, path in FILES.items()}

    assert [module for module, names in found.items() if names] == [SDK_PRIVATE_NAMES]


@pytest.mark.parametrize(
    "source",
    [
        "from google.appengine.api import datastore\ndatastore._GetConnection()",
        "from google.appengine.api.taskqueue import cloudtask\ncloudtask._THREAD_POOL = 1",
        "from google.appengine.api.taskqueue.taskqueue import _TranslateError",
        "vars(task)['_Task__name']",
        "class Stub(Theirs):\n    def _Dynamic_BulkAdd(self): ...",
    ],
)
def test_a_private_name_of_the_sdk_is_found(source: str) -> None:
    """The check finds a name that is read, written, imported, mangled or overridden."""
    assert private_names_of_the_sdk(source)
