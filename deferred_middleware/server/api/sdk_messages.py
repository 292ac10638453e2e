"""Which protocol buffers go with each method of the SDK's services.

The SDK's client sends a service, a method and bytes; what the bytes are is known to both sides beforehand
(``google/appengine/ext/remote_api`` of the older SDK had such a table, the current one doesn't). Sources: the calls in
``google/appengine/api/*`` and ``google/appengine/datastore/datastore_rpc.py`` of appengine-python-standard 3.1.0.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.message import Message

    MessageTypes = tuple[type[Message], type[Message]]

_MEMCACHE_METHODS = {
    # method: the stem of its messages' names
    "Get": "Get",
    "Set": "Set",
    "Delete": "Delete",
    "Increment": "Increment",
    "BatchIncrement": "BatchIncrement",
    "FlushAll": "Flush",
    "Stats": "Stats",
}
_MODULES_METHODS = (
    "GetModules",
    "GetVersions",
    "GetDefaultVersion",
    "GetNumInstances",
    "SetNumInstances",
    "StartModule",
    "StopModule",
    "GetHostname",
)
_APP_IDENTITY_METHODS = {
    "SignForApp": "SignForApp",
    "GetPublicCertificatesForApp": "GetPublicCertificateForApp",
    "GetServiceAccountName": "GetServiceAccountName",
    "GetDefaultGcsBucketName": "GetDefaultGcsBucketName",
    "GetAccessToken": "GetAccessToken",
}
_USER_METHODS = ("CreateLoginURL", "CreateLogoutURL", "GetOAuthUser")
_TASKQUEUE_METHODS = (
    "Add",
    "BulkAdd",
    "Delete",
    "ForceRun",
    "UpdateQueue",
    "FetchQueues",
    "FetchQueueStats",
    "PauseQueue",
    "PurgeQueue",
    "DeleteQueue",
    "DeleteGroup",
    "QueryTasks",
    "FetchTask",
    "QueryAndOwnTasks",
    "ModifyTaskLease",
    "UpdateStorageLimit",
)


def message_types(service: str, method: str) -> MessageTypes:
    """Return the request's and the response's class. Raises :class:`KeyError` for a method nobody here knows."""
    return _table()[service, method]


@functools.cache
def _table() -> dict[tuple[str, str], MessageTypes]:
    # The SDK takes long to import, so it waits until the table is asked for.
    from google.appengine.api import api_base_pb2, mail_service_pb2, urlfetch_service_pb2, user_service_pb2
    from google.appengine.api.app_identity import app_identity_service_pb2
    from google.appengine.api.capabilities import capability_service_pb2
    from google.appengine.api.memcache import memcache_service_pb2
    from google.appengine.api.modules import modules_service_pb2
    from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2
    from google.appengine.datastore import datastore_v3_bytes_pb2, entity_bytes_pb2

    def pair(module: Any, stem: str) -> MessageTypes:
        return getattr(module, f"{stem}Request"), getattr(module, f"{stem}Response")

    void = api_base_pb2.VoidProto
    datastore = datastore_v3_bytes_pb2
    index = entity_bytes_pb2.CompositeIndex
    table: dict[tuple[str, str], MessageTypes] = {
        ("datastore_v3", "Get"): pair(datastore, "Get"),
        ("datastore_v3", "Put"): pair(datastore, "Put"),
        ("datastore_v3", "Delete"): pair(datastore, "Delete"),
        ("datastore_v3", "Touch"): pair(datastore, "Touch"),
        ("datastore_v3", "RunQuery"): (datastore.Query, datastore.QueryResult),
        ("datastore_v3", "Next"): (datastore.NextRequest, datastore.QueryResult),
        ("datastore_v3", "AllocateIds"): pair(datastore, "AllocateIds"),
        ("datastore_v3", "BeginTransaction"): (datastore.BeginTransactionRequest, datastore.Transaction),
        ("datastore_v3", "Commit"): (datastore.Transaction, datastore.CommitResponse),
        ("datastore_v3", "Rollback"): (datastore.Transaction, void),
        ("datastore_v3", "AddActions"): pair(taskqueue_service_bytes_pb2, "TaskQueueBulkAdd"),
        ("datastore_v3", "GetIndices"): (datastore.GetIndicesRequest, datastore.CompositeIndices),
        ("datastore_v3", "CreateIndex"): (index, api_base_pb2.Integer64Proto),
        ("datastore_v3", "UpdateIndex"): (index, void),
        ("datastore_v3", "DeleteIndex"): (index, void),
        ("mail", "Send"): (mail_service_pb2.MailMessage, void),
        ("mail", "SendToAdmins"): (mail_service_pb2.MailMessage, void),
        ("urlfetch", "Fetch"): pair(urlfetch_service_pb2, "URLFetch"),
        ("capability_service", "IsEnabled"): pair(capability_service_pb2, "IsEnabled"),
    }
    for method, stem in _MEMCACHE_METHODS.items():
        table["memcache", method] = pair(memcache_service_pb2, f"Memcache{stem}")
    for method in _MODULES_METHODS:
        table["modules", method] = pair(modules_service_pb2, method)
    for method, stem in _APP_IDENTITY_METHODS.items():
        table["app_identity_service", method] = pair(app_identity_service_pb2, stem)
    for method in _USER_METHODS:
        table["user", method] = pair(user_service_pb2, method)
    for method in _TASKQUEUE_METHODS:
        table["taskqueue", method] = pair(taskqueue_service_bytes_pb2, f"TaskQueue{method}")
    return table
