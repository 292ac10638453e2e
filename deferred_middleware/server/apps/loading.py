"""Find the WSGI application that ``module:callable`` names, or explain in one sentence why there is none.

    application = load_application("main:app")

``callable`` may be dotted (``main:site.wsgi``). A factory is called if that is written out, with literal arguments, as
for gunicorn: ``main:create_app()``, ``main:create_app("test", debug=True)``.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import sys
import traceback
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, cast

from deferred_middleware.errors import ServerError, nearest

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


class AppLoadError(ServerError):
    """The APP that was given, ``spec``, is not a WSGI application that can be served."""

    def __init__(self, spec: str, message: str) -> None:
        self.spec = spec
        super().__init__(message)


_Arguments = tuple[list[Any], dict[str, Any]]


def split_spec(spec: str) -> tuple[str, str, _Arguments | None]:
    """Return the module's name, the dotted callable, and the arguments for a factory; None if it is not to be called.

    Raises :class:`AppLoadError` if ``spec`` has another form.
    """
    module, colon, attribute = spec.partition(":")
    arguments = None
    if attribute.endswith(")"):
        attribute, arguments = _split_call(spec, attribute)
    names = [*module.split("."), *attribute.split(".")]
    if not colon or not all(name.isidentifier() for name in names):
        hint = ""
        if module.endswith(".py") or os.sep in module:
            hint = f", such as {os.path.splitext(module)[0].replace(os.sep, '.')}:app"
        raise AppLoadError(spec, f"APP is given as MODULE:CALLABLE{hint or ', such as main:app'}; got {spec!r}.")
    return module, attribute, arguments


def _split_call(spec: str, text: str) -> tuple[str, _Arguments]:
    """Return the dotted name in ``name(arguments)``, and the values of the arguments."""
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call):
            raise ValueError("no call")
        keywords = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg}
        if len(keywords) != len(call.keywords):
            raise ValueError("** in a call")
        return ast.unparse(call.func), ([ast.literal_eval(argument) for argument in call.args], keywords)
    except (ValueError, SyntaxError) as error:
        raise AppLoadError(
            spec, f"APP can call a factory only with literal arguments, such as main:create_app('test'); got {spec!r}."
        ) from error


def load_application(spec: str) -> WSGIApplication:
    """Import and return the WSGI application that ``spec`` names.

    Raises :class:`AppLoadError`, with the underlying error as its cause if there is one. The message about an error in
    the module's own code has the file and the line of the app where it happened.
    """
    module_name, attribute, arguments = split_spec(spec)
    found: Any = _import(spec, module_name)
    path = module_name
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            raise AppLoadError(spec, f"{path} has no {name!r}{_suggestion(found, name)}") from error
        path += f":{name}" if path == module_name else f".{name}"
    if arguments is not None:
        found = _call(spec, path, found, arguments)
    _check_is_wsgi(spec, found)
    return cast("WSGIApplication", found)


def _call(spec: str, path: str, factory: Any, arguments: _Arguments) -> Any:
    try:
        return factory(*arguments[0], **arguments[1])
    except Exception as error:
        what = "".join(traceback.format_exception_only(type(error), error)).strip().splitlines()[-1]
        raise AppLoadError(spec, f"Calling {path} failed: {what}{_place(error.__traceback__)}.") from error


def _import(spec: str, module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            where = f"the current directory ({os.getcwd()}) or on Python's path"
            if error.name != module_name.partition(".")[0]:
                where = f"the package {error.name.rpartition('.')[0]}"
            raise AppLoadError(
                spec,
                f"No module named {error.name!r} in {where}; "
                "start the command in the folder that has the module, or correct the name.",
            ) from error
        raise _import_failed(spec, module_name, error) from error
    except SystemExit as error:
        status = "" if error.code is None else repr(error.code)
        where = _place(error.__traceback__)
        raise AppLoadError(
            spec,
            f"{module_name} called sys.exit({status}) while it was imported{where}; an import must not exit.",
        ) from error
    except Exception as error:
        raise _import_failed(spec, module_name, error) from error


def _import_failed(spec: str, module_name: str, error: Exception) -> AppLoadError:
    what = "".join(traceback.format_exception_only(type(error), error)).strip().splitlines()[-1]
    where = _place(error.__traceback__)
    if isinstance(error, SyntaxError) and error.filename:
        where = f" ({_short(error.filename)}:{error.lineno})"
    return AppLoadError(spec, f"Importing {module_name} failed: {what}{where}.")


def _place(trace: TracebackType | None) -> str:
    """Return the place of the innermost frame of the app's own code, or else of the innermost frame."""
    frames = [frame for frame in traceback.extract_tb(trace) if not frame.filename.startswith("<frozen")]
    frames = [frame for frame in frames if frame.filename != __file__]
    if not frames:
        return ""
    here = os.getcwd() + os.sep
    own = [
        frame
        for frame in frames
        if frame.filename.startswith(here)
        and "site-packages" not in frame.filename
        and not frame.filename.startswith(sys.prefix + os.sep)
    ]
    frame = (own or frames)[-1]
    return f" ({_short(frame.filename)}:{frame.lineno})"


def _short(filename: str) -> str:
    relative = os.path.relpath(filename)
    return filename if relative.startswith("..") else relative


def _suggestion(owner: object, name: str) -> str:
    public = [known for known in dir(owner) if not known.startswith("_")]
    meant = nearest(name, public)
    if meant:
        return f"; did you mean {meant!r}?"
    if not isinstance(owner, ModuleType):
        return "."
    own = [
        known
        for known in public
        if callable(getattr(owner, known)) and getattr(getattr(owner, known), "__module__", "") == owner.__name__
    ]
    instances = [
        known
        for known in public
        if callable(getattr(owner, known)) and not inspect.isroutine(getattr(owner, known)) and known not in own
        if not inspect.isclass(getattr(owner, known))
    ]
    names = sorted(instances + own)[:8]
    return f"; it has: {', '.join(names)}." if names else "; it has no callable."


def _check_is_wsgi(spec: str, found: object) -> None:
    if not callable(found):
        raise AppLoadError(
            spec,
            f"{spec} is {_described(found)}, which can't be called; "
            "a WSGI application is called with (environ, start_response).",
        )
    if inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(getattr(found, "__call__", None)):  # noqa: B004 - the method itself is asked for
        raise AppLoadError(
            spec, f"{spec} is an async (ASGI) application; this server serves WSGI applications, as wrap_wsgi_app does."
        )
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return  # written in C, or otherwise without a signature: the first request will show
    try:
        signature.bind({}, None)
    except TypeError as error:
        required = [
            parameter
            for parameter in signature.parameters.values()
            if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        ]
        hint = "a WSGI application is called with (environ, start_response)."
        if not required:
            hint = f"it looks like a factory. If it is one, call it: {spec}()."
        raise AppLoadError(
            spec, f"{spec} has the signature {signature}, so it is no WSGI application; {hint}"
        ) from error


def _described(found: object) -> str:
    if isinstance(found, ModuleType):
        return f"the module {found.__name__}"
    name = type(found).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
