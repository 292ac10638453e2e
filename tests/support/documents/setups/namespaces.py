import importlib
from typing import Any

from webob import Request


def check(tasks: Any) -> None:
    tenants = importlib.import_module("tenants")
    tasks.app = tenants.app.wsgi_app
    Request.blank("/count", method="POST", headers={"X-Tenant": "ann"}).get_response(tasks.app)
    tenants.namespace_manager.set_namespace("")
    seen: list[str] = []
    vars(tenants)["print"] = lambda text, namespace: seen.append(namespace)
    assert tasks.run().status == 200
    assert seen == ["ann"]
