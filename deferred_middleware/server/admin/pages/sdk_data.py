"""What the SDK's datastore and memcache hold, to look at."""

from __future__ import annotations

from deferred_middleware.server.admin.operation_errors import bad
from deferred_middleware.server.admin.web.requests import Answer, PageRequest, Shown
from deferred_middleware.server.admin.web.routes import MenuEntry, Route
from deferred_middleware.server.admin.web.tools import PageTools

_MOST_DIGITS = 9


def show_datastore(tools: PageTools, request: PageRequest) -> Answer:
    """Show the kinds, and the entities of one of them; or one entity."""
    data = tools.reports.data
    namespace, kind, key = request.given("namespace"), request.given("kind"), request.given("key")
    if key:
        return Shown(template="entity.html", values={"entity": data.entity(key), "kind": kind})
    offset = request.given("offset") or "0"
    if not (offset.isascii() and offset.isdecimal() and len(offset) < _MOST_DIGITS):
        raise bad(f"offset={offset[:40]!r} is not a number of entities.")
    values = {
        **data.kinds(namespace),
        "kind": kind,
        "entities": [],
        "properties": [],
        "next_offset": None,
        "offset": int(offset),
    }
    if kind:
        values.update(data.entities(kind, namespace, offset=int(offset)))
    return Shown(template="datastore.html", values=values)


def show_memcache(tools: PageTools, request: PageRequest) -> Answer:
    """Show statistics and keys."""
    prefix = request.given("prefix")
    return Shown(template="memcache.html", values={**tools.reports.data.memcache(prefix), "prefix": prefix})


MENU = (MenuEntry(label="Datastore", path="/datastore"), MenuEntry(label="Memcache", path="/memcache"))
ROUTES = (Route("GET", "/datastore", show_datastore), Route("GET", "/memcache", show_memcache))
