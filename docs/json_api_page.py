"""Write ``json-api.rst``, the manual's reference of the JSON API, from the table of its routes.

Run ``python docs/json_api_page.py``. A test compares the page with the table.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

from deferred_middleware.server.admin.json_api import API_PREFIX
from deferred_middleware.server.admin.routes.openapi import ERRORS, PARAMETERS, statuses_of
from deferred_middleware.server.admin.routes.table import ROUTES, ApiRoute

PAGE = Path(__file__).with_name("json-api.rst")
_HEAD = """\
======================
Routes of the JSON API
======================

..
    Written by json_api_page.py.

These are all routes of the local server's JSON API. :doc:`operations` says how to use it, and lists
the fields of tasks, queues and other things.

The server describes the API in OpenAPI 3.1 at ``/api/v1/openapi.json``, which needs the token as
all of the API does. The description is made from the same table as this page:

.. not executed: it needs a running server; its tests send the same request.

.. code-block:: console

    $ curl -H "X-Deferred-Admin-Token: $TOKEN" http://127.0.0.1:8000/api/v1/openapi.json

A GET is also answered as a HEAD. "or null" says that a field may be null. An answer may have more
fields than these.
"""


def page() -> str:
    """Return the page."""
    lines = [_HEAD]
    part = None
    for route in ROUTES:
        first = route.path.split("/")[1]
        if first != part and first in _TITLES:
            part = first
            lines += [_TITLES[first], "=" * len(_TITLES[first]), ""]
        lines += _route(route)
    return "\n".join([*lines, "Errors", "======", "", *_errors()]) + "\n"


_TITLES = {
    "": "Server and tests",
    "queues": "Queues",
    "tasks": "Tasks",
    "failures": "Failures and figures",
    "queue-yaml": "Files, data and changes",
}


def _route(route: ApiRoute) -> Iterable[str]:
    yield f".. _json-api-{route.operation}:"
    yield ""
    yield f"``{route.method} {API_PREFIX}{route.path}``"
    yield from _indented(route.summary)
    for name in re.findall(r"{(\w+)}", route.path):
        yield from _item(f"``{name}``", PARAMETERS[name])
    for name in route.query:
        yield from _item(f"``?{name}=``", PARAMETERS[name])
    yield ""
    if route.body:
        required = f" Required: {', '.join(f'``{name}``' for name in route.needs)}." if route.needs else ""
        yield from _indented(f"Body: {_fields(route.body)}.{required}")
        yield ""
    yield from _indented(f"Answer: {_fields(route.answer) if route.answer else 'an object'}.")
    yield from _indented(f"Errors: {', '.join(statuses_of(route))}.")
    yield ""


def _fields(fields: Mapping[str, str]) -> str:
    return ", ".join(f"``{name}`` ({kind.replace('?', ' or null')})" for name, kind in fields.items())


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)


def _item(name: str, text: str) -> list[str]:
    return ["", *textwrap.wrap(f"* {name}: {text}", 100, initial_indent="    ", subsequent_indent="      ")]


def _errors() -> Iterable[str]:
    for status, meaning in ERRORS.items():
        yield f"``{status}``"
        yield from _indented(meaning)


if __name__ == "__main__":
    PAGE.write_text(page())
