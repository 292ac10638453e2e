"""Find ``defer`` calls that will fail, by reading source code: nothing is imported or run.

:func:`check_source` knows the call by what a module imports: ours, the SDK's ``google.appengine.ext.deferred`` and
freshplanet's ``tasks``. What can't be told from the syntax tree is left alone, so that what is reported is wrong.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Final, Literal

from deferred_middleware.calls.options import OPTION_NAMES
from deferred_middleware.errors import nearest
from deferred_middleware.wire import protocol

# What fits in a task, roughly, and what defer() refuses unless DEFERRED_MAX_PAYLOAD_BYTES allows it.
_LARGE_BYTES: Final = 100_000
_TOO_LARGE_BYTES: Final = 10 * 1024 * 1024
_MAX_COUNTDOWN_SECONDS: Final = protocol.MAX_ETA_DAYS * 24 * 3600
# Options that the SDK's module stumbles over when they are None (its defer() passes them on unlooked at).
_NONE_FAILS: Final = ("_url", "_headers", "_queue")
_UNPICKLABLE_CALLS: Final = ("open", "threading.Lock", "threading.RLock", "socket.socket", "iter")

# Dotted names of functions whose first argument is the callable.
_DEFERRING: Final = {
    "deferred_middleware.defer": "ours",
    "deferred_middleware.defer_async": "ours",
    "deferred_middleware.call": "ours",
    "deferred_middleware.compat.deferred.defer": "ours",
    "google.appengine.ext.deferred.defer": "sdk",
    "google.appengine.ext.deferred.deferred.defer": "sdk",
}
# Those whose first argument is the queues, and the second the callable.
_ADDING: Final = {"deferred_middleware.compat.tasks.addTask", "tasks.addTask"}


@dataclasses.dataclass(frozen=True, kw_only=True, order=True)
class Finding:
    """Something wrong with a call. ``note`` marks what failed in the older library and is accepted by ours."""

    path: str
    line: int
    column: int
    severity: Literal["error", "note"]
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}: {self.severity}: {self.message}"


def check_source(source: str, path: str = "<source>") -> list[Finding]:
    """Return what is wrong with the ``defer`` calls of a module's source, in its order.

    A syntax error is a finding too.
    """
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
    """Walks a module with the scopes that each call stands in."""

    def __init__(self, path: str) -> None:
        self.findings: list[Finding] = []
        self._path = path
        self._imports: dict[str, str] = {}
        self._scopes: list[_Scope] = []

    def visit_Module(self, node: ast.Module) -> None:
        self._inside("module", node.body, node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._imports[alias.asname or alias.name.partition(".")[0]] = (
                alias.name if alias.asname else alias.name.partition(".")[0]
            )

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            self._imports[alias.asname or alias.name] = f"{node.module}.{alias.name}"

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for outside in (*node.decorator_list, node.args):
            self.visit(outside)
        self._inside("function", node.body, node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for outside in (*node.decorator_list, *node.bases):
            self.visit(outside)
        self._inside("class", node.body, node)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        name = self._dotted(node.func)
        if name in _DEFERRING:
            self._check(node, node.args, older=_DEFERRING[name] == "sdk")
        elif name in _ADDING:
            self._check(node, node.args[1:], older=True)

    def _inside(self, kind: Literal["module", "function", "class"], body: Sequence[ast.stmt], node: ast.AST) -> None:
        scope = _Scope(kind=kind, names=dict(_definitions(body)))
        self._scopes.append(scope)
        for statement in body:
            self.visit(statement)
        self._scopes.pop()

    def _dotted(self, node: ast.expr) -> str | None:
        """Return the dotted name that an expression stands for, by the module's imports."""
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

    def _check(self, node: ast.Call, positional: Sequence[ast.expr], *, older: bool) -> None:
        if not positional:
            if not any(keyword.arg is None for keyword in node.keywords):
                self._report(node, "there is no callable to defer")
            return
        if isinstance(positional[0], ast.Starred):
            return
        func, *args = positional
        definition = self._check_callable(func)
        own = [keyword for keyword in node.keywords if keyword.arg not in OPTION_NAMES]
        for keyword in own:
            if keyword.arg is not None and keyword.arg.startswith("_"):
                self._check_own_option(keyword, definition)
        for argument in (*args, *(keyword.value for keyword in own)):
            self._check_argument(argument)
        self._check_options({keyword.arg: keyword for keyword in node.keywords if keyword.arg in OPTION_NAMES}, older)
        if definition is not None:
            self._check_arity(node, definition, args, own)

    def _check_callable(self, func: ast.expr) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
        """Report a callable that import can't find; return the module's own function that it is, if it is one."""
        if isinstance(func, ast.Lambda):
            self._report(func, "a lambda can't be found again by import; write it as a function of the module")
        elif isinstance(func, ast.Call):
            name = self._dotted(func.func)
            if name in ("functools.partial", "partial") and func.args:
                self._check_callable(func.args[0])
            elif isinstance(self._defined(func.func), (ast.FunctionDef, ast.AsyncFunctionDef)):
                self._report(func, "the function is called here, not deferred: give it and its arguments apart")
        elif isinstance(func, ast.Constant):
            self._report(func, f"{func.value!r} can't be called")
        else:
            return self._check_name(func)
        return None

    def _check_name(self, func: ast.expr) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
        if not isinstance(func, ast.Name):
            return None
        definition = self._defined(func)
        if isinstance(definition, ast.Lambda):
            self._report(func, f"{func.id} is a lambda, which can't be found again by import")
            return None
        nested = definition is not None and any(
            scope.kind == "function" and scope.names.get(func.id) is definition for scope in self._scopes
        )
        if nested and isinstance(definition, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            self._report(
                func, f"{func.id} is defined inside a function, where import can't find it; move it to the module's top"
            )
            return None
        if isinstance(definition, (ast.FunctionDef, ast.AsyncFunctionDef)):
            if not definition.decorator_list and _is_generator(definition):
                self._report(func, f"{func.id} is a generator function: calling it runs none of its body")
                return None
            return definition
        return None

    def _defined(self, func: ast.expr) -> ast.AST | None:
        """Return what the module itself defines under a name, as seen from here."""
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

    def _check_own_option(
        self, keyword: ast.keyword, definition: ast.FunctionDef | ast.AsyncFunctionDef | None
    ) -> None:
        if definition is not None:
            arguments = definition.args
            known = [argument.arg for argument in (*arguments.args, *arguments.kwonlyargs)]
            if keyword.arg in known or (arguments.kwarg is not None and not _near(keyword.arg)):
                return
        elif not _near(keyword.arg):
            return  # it may be the function's own
        meant = nearest(str(keyword.arg), OPTION_NAMES)
        hint = f"; is it meant as {meant}?" if meant else f"; the options are {', '.join(OPTION_NAMES)}"
        self._report(keyword, f"{keyword.arg} is no option{hint}")

    def _check_argument(self, argument: ast.expr) -> None:
        if isinstance(argument, ast.Lambda):
            self._report(argument, "a lambda can't be pickled, so it can't be an argument")
        elif isinstance(argument, ast.GeneratorExp):
            self._report(argument, "a generator can't be pickled; pass a list")
        elif isinstance(argument, ast.Call) and self._dotted(argument.func) in _UNPICKLABLE_CALLS:
            what = ast.unparse(argument.func)
            self._report(argument, f"what {what}() returns can't be pickled; pass what identifies it")
        else:
            size = sum(
                len(node.value)
                for node in ast.walk(argument)
                if isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes))
            )
            if size > _LARGE_BYTES:
                message = f"this literal takes {size:,} bytes, a task carries {_LARGE_BYTES:,}; store it, pass its key"
                self._report(argument, message, "error" if size > _TOO_LARGE_BYTES else "note")

    def _check_options(self, options: dict[str | None, ast.keyword], older: bool) -> None:
        for name, keyword in options.items():
            value = keyword.value
            if isinstance(value, ast.Constant) and value.value is None:
                if older and name in _NONE_FAILS:
                    message = f"{name}=None fails with google.appengine.ext.deferred; here it counts as not given"
                    self._report(keyword, message, "note")
                continue
            if name == "_name" and not _legal(value, protocol.TASK_NAME_PATTERN):
                self._report(keyword, "a task's name is 1 to 500 of the characters a-z, A-Z, 0-9, _ and -")
            elif name == "_queue" and not _legal(value, protocol.QUEUE_NAME_PATTERN):
                self._report(keyword, "a queue's name is 1 to 100 of the characters a-z, A-Z, 0-9 and -")
            elif name == "_countdown":
                self._check_countdown(keyword)
        if "_eta" in options and "_countdown" in options:
            self._report(options["_countdown"], "there is an _eta too; a task takes one of the two")
        transactional = options.get("_transactional")
        if "_name" in options and transactional is not None and _constant(transactional.value) is True:
            self._report(options["_name"], "a task added in a transaction can't have a name of its own")

    def _check_countdown(self, keyword: ast.keyword) -> None:
        seconds = _constant(keyword.value)
        if not isinstance(seconds, (int, float)) or isinstance(seconds, bool):
            return
        if seconds > _MAX_COUNTDOWN_SECONDS:
            days = protocol.MAX_ETA_DAYS
            self._report(keyword, f"a task can be at most {days} days ({_MAX_COUNTDOWN_SECONDS:,} s) ahead")
        elif seconds < 0:
            self._report(keyword, "the countdown is negative; the task runs now, with a warning", "note")

    def _check_arity(
        self,
        node: ast.Call,
        definition: ast.FunctionDef | ast.AsyncFunctionDef,
        args: Sequence[ast.expr],
        own: Sequence[ast.keyword],
    ) -> None:
        if definition.decorator_list or any(isinstance(argument, ast.Starred) for argument in args):
            return  # a decorator may change the signature
        if any(keyword.arg is None for keyword in own):
            return
        parameters = definition.args
        positional = [argument.arg for argument in (*parameters.posonlyargs, *parameters.args)]
        given = {str(keyword.arg) for keyword in own}
        taken = set(positional[: len(args)])
        if len(args) > len(positional) and parameters.vararg is None:
            self._report(node, f"{definition.name}() takes {len(positional)} positional arguments, not {len(args)}")
        required = positional[: len(positional) - len(parameters.defaults)]
        required += [a.arg for a, d in zip(parameters.kwonlyargs, parameters.kw_defaults, strict=True) if d is None]
        missing = [name for name in required if name not in taken and name not in given]
        if missing:
            self._report(node, f"{definition.name}() needs {', '.join(missing)} as well")
        known = {*positional, *(argument.arg for argument in parameters.kwonlyargs)}
        unknown = sorted(name for name in given - known if not name.startswith("_"))
        if unknown and parameters.kwarg is None:
            self._report(node, f"{definition.name}() takes no argument {', '.join(unknown)}")
        twice = sorted(given & taken)
        if twice:
            self._report(node, f"{definition.name}() is given {', '.join(twice)} twice")


def _definitions(body: Sequence[ast.stmt]) -> Iterator[tuple[str, ast.AST]]:
    """Yield the names that statements define, without looking into functions and classes."""
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
    waiting: list[ast.AST] = list(definition.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Yield, ast.YieldFrom)):
            return True
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            waiting.extend(ast.iter_child_nodes(node))
    return False


def _near(name: str | None) -> bool:
    return nearest(str(name), OPTION_NAMES, similarity=0.75) is not None


def _constant(node: ast.expr) -> object:
    """Return the value of a literal, or None."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _legal(node: ast.expr, pattern: re.Pattern[str]) -> bool:
    """Tell whether a literal name, or each of a list of them, is legal; what is no literal may be."""
    value = _constant(node)
    values = value if isinstance(value, (list, tuple)) else [value]
    return all(pattern.fullmatch(text) for text in values if isinstance(text, str))
