"""The script that an app process runs. It imports the server's own code before the app's folder is on Python's path.

With ``python -m``, the directory of the command would come first on the path. A module of the app with a name from the
standard library, such as ``queue.py`` or ``email.py``, would then take that module's place in the server's code. A
script's own directory comes first instead, and this script removes it.

This file imports only a built-in module at its top, because its directory is on the path until then.
"""

import sys

STANDARD_LIBRARY_FIRST = [
    "argparse",
    "base64",
    "bz2",
    "concurrent.futures.thread",
    "csv",
    "email.utils",
    "encodings.idna",
    "fcntl",
    "glob",
    "grp",
    "html",
    "http.client",
    "ipaddress",
    "lzma",
    "pwd",
    "quopri",
    "shlex",
    "shutil",
    "socketserver",
    "ssl",
    "tempfile",
    "textwrap",
    "zipfile",
    "zlib",
]
"""Modules that are imported before the app, besides those that the server's own code imports.

The server and gunicorn have then imported the same ones. An app whose modules have these names works under gunicorn,
because frameworks find the modules of the standard library as imported already.
"""


def run() -> int:
    """Run the app process that standard input describes; return its exit status."""
    # The server runs on POSIX systems only, so a slash separates the parts of a path.
    directory, root = (__file__.rsplit("/", count)[0] for count in (1, 4))
    # Python doesn't add the script's directory if PYTHONSAFEPATH is set.
    if sys.path[:1] == [directory]:
        del sys.path[0]
    _import_package(root)
    _import_standard_library()

    from deferred_middleware.server.apps.app_server import main

    return main()


def _import_package(root: str) -> None:
    """Import the package that this file is part of, even if Python's path has none or another one.

    The command may have found it on a path that the process does not inherit: a PYTHONPATH that app.yaml replaces, or
    the command's directory.
    """
    import importlib.machinery
    import importlib.util

    name = "deferred_middleware"
    spec = importlib.machinery.PathFinder.find_spec(name, [root])
    assert spec is not None
    assert spec.loader is not None
    package = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)


def _import_standard_library() -> None:
    import contextlib
    import importlib

    for name in STANDARD_LIBRARY_FIRST:
        # A Python may have been built without a module, such as ssl or lzma.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


if __name__ == "__main__":
    sys.exit(run())
