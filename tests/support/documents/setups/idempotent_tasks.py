from typing import Any

from google.appengine.ext import testbed

from deferred_middleware import DeferredMiddleware

bed = testbed.Testbed()
bed.activate()
bed.init_datastore_v3_stub()
bed.init_memcache_stub()


def site(environ: Any, start_response: Any) -> list[bytes]:
    return []


def check(tasks: Any) -> None:
    tasks.app = DeferredMiddleware(site)
    assert [task.name for task in tasks.pending] == ["invoice-7"]
    tasks.clear()
    globals()["test_an_invoice_is_paid_once"](tasks)
