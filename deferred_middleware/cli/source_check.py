"""Find ``defer`` calls that will fail, by reading source code. Nothing is imported or run.

:func:`check_source` recognizes the calls by the module's imports: ours, those of the SDK's
``google.appengine.ext.deferred``, and those of freshplanet's ``tasks``. It reports only what the syntax tree proves.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Final, Literal

from deferred_middleware.calls.options import OPTION_NAMES
from deferred_middleware.cli.output import count
from deferred_middleware.errors import nearest
from deferred_middleware.wire import protocol

# About what fits in a task, and what defer() rejects unless DEFERRED_MAX_PAYLOAD_BYTES is raised.
_LARGE_BYTES: Final = 100_000
_TOO_LARGE_BYTES: Final = 10 * 1024 * 1024
_MAX_COUNTDOWN_SECONDS: Final = protocol.MAX_ETA_DAYS * 24 * 3600
# Options that must not be None in the SDK's module, whose defer() passes them on unchecked.
_NOT_NONE_IN_THE_SDK: Final = ("_url", "_headers", "_queue")
_UNPICKLABLE_CALLS: Final = ("open", "threading.Lock", "threading.RLock", "socket.socket", "iter")

# Functions whose first argument is the callable, and whose options they take.
_DEFER_FUNCTIONS: Final = {
    "deferred_middleware.defer": "ours",
    "deferred_middleware.defer_async": "ours",
    "deferred_middleware.call": "ours",
    "deferred_middleware.compat.deferred.defer": "ours",
    "google.appengine.ext.deferred.defer": "sdk",
    "google.appengine.ext.deferred.deferred.defer": "sdk",
}
# Functions whose first argument is the queues, and whose second argument is the callable.
_ADD_TASK_FUNCTIONS: Final = {"deferred_middleware.compat.tasks.addTask", "tasks.addTask"}


@dataclasses.dataclass(frozen=True, kw_only=True, order=True)
class Finding:
    """A problem of a call. A ``note`` is one that failed in the SDK's module and is accepted here."""

    path: str
    line: int
    column: int
    severity: Literal["error", "note"]
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}: {self.severity}: {self.message}"


def check_source(source: str, path: str = "<source>") -> list[Finding]:
    """Return the findings in the source of a module, in its order. A syntax error is a finding too."""
    try:
        tree = ast.parse(source, path)
    except (SyntaxError, ValueError) as error:
        line, column = getattr(error, "lineno", None) or 1, getattr(error, "offset", None) or 1
        return [Finding(path=path, line=line, column=column, severity="error", message=f"can't be parsed: {error}")]
    visitor = _Visitor(path)
    visitor.visit(tree)
    return sorted(set(visitor.findings))


@dataclasses.dataclass(kw_only=True)
class _Scope:
    """The names that a module, function or class defines."""

    kind: Literal["module", "function", "class"]
    names: dict[str, ast.AST] = dataclasses.field(default_factory=dict)


class _Visitor(ast.NodeVisitor):
    """Walks through a module, and keeps the scopes around the current node."""

    def __init__(self, path: str) -> None:
        self.findings: list[Finding] = []
        self._path = path
        self._imports: dict[str, str] = {}
        self._scopes: list[_Scope] = []

    def visit_Module(self, node: ast.Module) -> None:
        self._visit_scope("module", node.body)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._imports[alias.asname or alias.name.partition(".")[0]] = (
                alias.name if alias.asname else alias.name.partition(".")[0]
            )

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            self._imports[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for outer in (*node.decorator_list, node.args):
            self.visit(outer)
        self._visit_scope("function", node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for outer in (*node.decorator_list, *node.bases):
            self.visit(outer)
        self._visit_scope("class", node.body)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        name = self._dotted_name(node.func)
        if name in _DEFER_FUNCTIONS:
            self._check_call(node, node.args, is_sdk=_DEFER_FUNCTIONS[name] == "sdk")
        elif name in _ADD_TASK_FUNCTIONS:
            self._check_call(node, node.args[1:], is_sdk=True)

    def _visit_scope(self, kind: Literal["module", "function", "class"], body: Sequence[ast.stmt]) -> None:
        scope = _Scope(kind=kind, names=dict(_definitions(body)))
        self._scopes.append(scope)
        for statement in body:
            self.visit(statement)
        self._scopes.pop()

    def _dotted_name(self, node: ast.expr) -> str | None:
        """Return the full dotted name of an expression, with the module's imports resolved."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return None
        return ".".join([self._imports.get(node.id, node.id), *reversed(parts)])

    def _report(self, node: ast.AST, message: str, severity: Literal["error", "note"] = "error") -> None:
        line, column = getattr(node, "lineno", 1), getattr(node, "col_offset", 0) + 1
        self.findings.append(Finding(path=self._path, line=line, column=column, severity=severity, message=message))

    def _check_call(self, node: ast.Call, positional: Sequence[ast.expr], *, is_sdk: bool) -> None:
        if not positional:
            if not any(keyword.arg is None for keyword in node.keywords):
                self._report(node, "the callable to defer is missing")
            return
        if isinstance(positional[0], ast.Starred):
            return
        func, *args = positional
        definition = self._check_callable(func)
        own_keywords = [keyword for keyword in node.keywords if keyword.arg not in OPTION_NAMES]
        for keyword in own_keywords:
            if keyword.arg is not None and keyword.arg.startswith("_"):
                self._check_unknown_option(keyword, definition)
        for argument in (*args, *(keyword.value for keyword in own_keywords)):
            self._check_argument(argument)
        self._check_options({keyword.arg: keyword for keyword in node.keywords if keyword.arg in OPTION_NAMES}, is_sdk)
        if definition is not None:
            self._check_arity(node, definition, args, own_keywords)

    def _check_callable(self, func: ast.expr) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
        """Report a callable that can't be imported by name. Return its definition if that is in this module."""
        if isinstance(func, ast.Lambda):
            self._report(func, "a lambda can't be imported by name; define a function at the top level of the module")
        elif isinstance(func, ast.Call):
            name = self._dotted_name(func.func)
            if name in ("functools.partial", "partial") and func.args:
                self._check_callable(func.args[0])
            elif isinstance(self._defined(func.func), (ast.FunctionDef, ast.AsyncFunctionDef)):
                self._report(func, "this calls the function now; pass the function and its arguments separately")
        elif isinstance(func, ast.Constant):
            self._report(func, f"{func.value!r} is not callable")
        else:
            return self._check_name(func)
        return None

    def _check_name(self, func: ast.expr) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
        if not isinstance(func, ast.Name):
            return None
        definition = self._defined(func)
        if isinstance(definition, ast.Lambda):
            self._report(func, f"{func.id} is a lambda, which can't be imported by name")
            return None
        nested = definition is not None and any(
            scope.kind == "function" and scope.names.get(func.id) is definition for scope in self._scopes
        )
        if nested and isinstance(definition, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            self._report(
                func,
                f"{func.id} is defined inside a function, so it can't be imported by name; move it to the top level",
            )
            return None
        if isinstance(definition, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if not definition.decorator_list and _is_generator(definition):
                self._report(func, f"{func.id} is a generator function; calling it doesn't run its body")
                return None
            return definition
        return None

    def _defined(self, func: ast.expr) -> ast.AST | None:
        """Return the module's own definition of a name, as the current scope sees it."""
        if not isinstance(func, ast.Name):
            return None
        innermost = len(self._scopes) - 1
        for depth in range(innermost, -1, -1):
            scope = self._scopes[depth]
            if scope.kind == "class" and depth != innermost:
                continue
            if func.id in scope.names:
                return scope.names[func.id]
        return None

    def _check_unknown_option(
        self, keyword: ast.keyword, definition: ast.FunctionDef | ast.AsyncFunctionDef | None
    ) -> None:
        if definition is not None:
            arguments = definition.args
            known = [argument.arg for argument in (*arguments.args, *arguments.kwonlyargs)]
            if keyword.arg in known or (arguments.kwarg is not None and not _nearest_option(keyword.arg, 0.75)):
                return
        elif not _nearest_option(keyword.arg, 0.75):
            return  # it may be an argument of the function
        meant = _nearest_option(keyword.arg, 0.6)
        hint = f"did you mean {meant}?" if meant else f"the options are {', '.join(OPTION_NAMES)}"
        self._report(keyword, f"{keyword.arg} is not an option; {hint}")

    def _check_argument(self, argument: ast.expr) -> None:
        if isinstance(argument, ast.Lambda):
            self._report(argument, "a lambda can't be pickled; pass a function of a module")
        elif isinstance(argument, ast.GeneratorExp):
            self._report(argument, "a generator can't be pickled; pass a list")
        elif isinstance(argument, ast.Call) and self._dotted_name(argument.func) in _UNPICKLABLE_CALLS:
            function = ast.unparse(argument.func)
            self._report(argument, f"the result of {function}() can't be pickled; pass a value that identifies it")
        else:
            size = sum(
                len(node.value)
                for node in ast.walk(argument)
                if isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes))
            )
            if size > _LARGE_BYTES:
                message = f"this literal has {size:,} bytes, a task holds {_LARGE_BYTES:,}; store it and pass its key"
                self._report(argument, message, "error" if size > _TOO_LARGE_BYTES else "note")

    def _check_options(self, options: dict[str | None, ast.keyword], is_sdk: bool) -> None:
        for name, keyword in options.items():
            value = keyword.value
            if isinstance(value, ast.Constant) and value.value is None:
                if is_sdk and name in _NOT_NONE_IN_THE_SDK:
                    message = f"{name}=None fails with google.appengine.ext.deferred; here it means the default"
                    self._report(keyword, message, "note")
                continue
            if name == "_name" and not _may_match(value, protocol.TASK_NAME_PATTERN):
                self._report(keyword, "a task's name has 1 to 500 of the characters a-z, A-Z, 0-9, _ and -")
            elif name == "_queue" and not _may_match(value, protocol.QUEUE_NAME_PATTERN):
                self._report(keyword, "a queue's name has 1 to 100 of the characters a-z, A-Z, 0-9 and -")
            elif name == "_countdown":
                self._check_countdown(keyword)
        if "_eta" in options and "_countdown" in options:
            self._report(options["_countdown"], "_countdown and _eta can't be combined")
        transactional = options.get("_transactional")
        if "_name" in options and transactional is not None and _literal_value(transactional.value) is True:
            self._report(options["_name"], "a transactional task can't have a name")

    def _check_countdown(self, keyword: ast.keyword) -> None:
        seconds = _literal_value(keyword.value)
        if not isinstance(seconds, (int, float)) or isinstance(seconds, bool):
            return
        if seconds > _MAX_COUNTDOWN_SECONDS:
            days = protocol.MAX_ETA_DAYS
            self._report(keyword, f"the ETA can be at most {days} days ({_MAX_COUNTDOWN_SECONDS:,} s) from now")
        elif seconds < 0:
            self._report(keyword, "the countdown is negative; the task runs at once, with a warning", "note")

    def _check_arity(
        self,
        node: ast.Call,
        definition: ast.FunctionDef | ast.AsyncFunctionDef,
        args: Sequence[ast.expr],
        keywords: Sequence[ast.keyword],
    ) -> None:
        if definition.decorator_list or any(isinstance(argument, ast.Starred) for argument in args):
            return  # a decorator may change the signature
        if any(keyword.arg is None for keyword in keywords):
            return  # **kwargs
        parameters = definition.args
        positional = [argument.arg for argument in (*parameters.posonlyargs, *parameters.args)]
        given = {str(keyword.arg) for keyword in keywords}
        taken = set(positional[: len(args)])
        if len(args) > len(positional) and parameters.vararg is None:
            self._report(
                node, f"{definition.name}() takes {count(len(positional), 'positional argument')}, not {len(args)}"
            )
        required = positional[: len(positional) - len(parameters.defaults)]
        required += [a.arg for a, d in zip(parameters.kwonlyargs, parameters.kw_defaults, strict=True) if d is None]
        missing = [name for name in required if name not in taken and name not in given]
        if missing:
            self._report(node, f"{definition.name}() also needs {', '.join(missing)}")
        known = {*positional, *(argument.arg for argument in parameters.kwonlyargs)}
        unknown = sorted(name for name in given - known if not name.startswith("_"))
        if unknown and parameters.kwarg is None:
            self._report(node, f"{definition.name}() has no argument {', '.join(unknown)}")
        twice = sorted(given & taken)
        if twice:
            self._report(node, f"{definition.name}() gets {', '.join(twice)} twice")


def _definitions(body: Sequence[ast.stmt]) -> Iterator[tuple[str, ast.AST]]:
    """Yield the names that statements define in their own scope, each with its definition."""
    for statement in body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield statement.name, statement
        elif isinstance(statement, ast.Assign):
            for target in statement.targets:
                if isinstance(target, ast.Name):
                    yield target.id, statement.value
        for field in ("body", "orelse", "finalbody"):
            if not isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield from _definitions(getattr(statement, field, []))


def _is_generator(definition: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    nodes: list[ast.AST] = list(definition.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, (ast.Yield, ast.YieldFrom)):
            return True
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            nodes.extend(ast.iter_child_nodes(node))
    return False


def _nearest_option(name: str | None, cutoff: float) -> str | None:
    """Return the option whose name is most similar to ``name``, if any reaches the similarity ``cutoff``."""
    return nearest(str(name), OPTION_NAMES, similarity=cutoff)


def _literal_value(node: ast.expr) -> object:
    """Return the value of a literal; None for any other expression."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _may_match(node: ast.expr, pattern: re.Pattern[str]) -> bool:
    """Return False if a literal string, or one in a literal list, doesn't match ``pattern``."""
    value = _literal_value(node)
    values = value if isinstance(value, (list, tuple)) else [value]
    return all(pattern.fullmatch(text) for text in values if isinstance(text, str))
