"""The OpenAPI description of the JSON API: its structure, and the manual's page that is made from it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from deferred_middleware.server.admin.json_api import API_PREFIX, JsonApi
from deferred_middleware.server.admin.routes.openapi import PARAMETERS, describe
from deferred_middleware.server.admin.routes.table import ROUTES
from tests.support.manual import made_page
from tests.support.repository import ROOT
from tests.support.visiting import Visitor
from tests.unit.server.admin.test_json_api import Api

DESCRIPTION = describe(API_PREFIX)
OPERATIONS = [(path, operation) for path, item in DESCRIPTION["paths"].items() for operation in item.values()]


def references(value: Any) -> list[str]:
    """Return all references in a description."""
    if isinstance(value, dict):
        return [value["$ref"]] if "$ref" in value else [found for part in value.values() for found in references(part)]
    return [found for part in value for found in references(part)] if isinstance(value, list) else []


def test_it_is_served(visitor: Visitor) -> None:
    """``/api/v1/openapi.json`` is the description, and needs the token as all of the API does."""
    api = Api(visitor.store)

    assert api.get("/openapi.json") == json.loads(json.dumps(DESCRIPTION))
    assert api.ask("GET", "/openapi.json", token=None)[0] == 401
    assert isinstance(api._app, JsonApi)


def test_the_head_is_that_of_openapi() -> None:
    """The description has the fields that OpenAPI 3.1 requires, and the token as its security."""
    assert re.fullmatch(r"3\.1\.\d+", DESCRIPTION["openapi"])
    assert {"title", "version"} <= set(DESCRIPTION["info"])
    assert DESCRIPTION["servers"] == [{"url": "/api/v1"}]
    schemes = DESCRIPTION["components"]["securitySchemes"]
    assert [set(needed) for needed in DESCRIPTION["security"]] == [set(schemes)]


def test_every_route_is_described_once() -> None:
    """The description has each route, under an identifier of its own."""
    described = {(method.upper(), path) for path, item in DESCRIPTION["paths"].items() for method in item}
    names = [operation["operationId"] for _path, operation in OPERATIONS]

    assert described == {(route.method, route.path) for route in ROUTES}
    assert len(described) == len(ROUTES) == len(set(names))


@pytest.mark.parametrize(("path", "operation"), OPERATIONS, ids=lambda given: given if isinstance(given, str) else "")
def test_operations_are_sound(path: str, operation: dict[str, Any]) -> None:
    """The parts of a path in braces are its parameters, names are unique, and required fields are described."""
    parameters = [(parameter["in"], parameter["name"]) for parameter in operation.get("parameters", ())]
    in_path = [parameter for parameter in operation.get("parameters", ()) if parameter["in"] == "path"]
    schemas = [operation["responses"]["200"]["content"]["application/json"]["schema"]]
    if "requestBody" in operation:
        schemas.append(operation["requestBody"]["content"]["application/json"]["schema"])

    assert sorted(parameter["name"] for parameter in in_path) == sorted(re.findall(r"{(\w+)}", path))
    assert all(parameter["required"] is True for parameter in in_path)
    assert len(set(parameters)) == len(parameters)
    assert all(response.get("description") or "$ref" in response for response in operation["responses"].values())
    assert all(set(schema.get("required", ())) <= set(schema["properties"]) for schema in schemas)
    known = {"array", "boolean", "integer", "null", "number", "object", "string"}
    for schema in schemas:
        for field in schema["properties"].values():
            assert known.issuperset([field["type"]] if isinstance(field["type"], str) else field["type"])


def test_references_lead_somewhere() -> None:
    """Each reference names a part of the description."""
    for reference in references(DESCRIPTION):
        part: Any = DESCRIPTION
        for step in reference.removeprefix("#/").split("/"):
            part = part[step]
        assert part


def test_no_parameter_is_left_over() -> None:
    """Each parameter with a meaning belongs to a route."""
    used = {parameter["name"] for _path, operation in OPERATIONS for parameter in operation.get("parameters", ())}

    assert used == set(PARAMETERS)


def test_the_manuals_page_is_this_one() -> None:
    """docs/json-api.rst is the output of docs/json_api_page.py. Run the script after a change of the routes."""
    assert (ROOT / "docs" / "json-api.rst").read_text() == made_page("json_api_page")
