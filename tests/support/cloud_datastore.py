"""A small Google Cloud Datastore: a gRPC server with the real messages, for google-cloud-ndb.

It implements what google-cloud-ndb calls: Lookup, RunQuery, BeginTransaction, Commit, Rollback and AllocateIds of
google.datastore.v1. Transactions read a snapshot, and are aborted if another transaction has written something that
they have read or write (https://cloud.google.com/datastore/docs/concepts/transactions).

``DATASTORE_EMULATOR_HOST`` leads the client to it.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
import threading
import uuid
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any

import grpc
from google.cloud.datastore_v1.types import datastore as types
from google.cloud.datastore_v1.types import entity as entity_types
from google.cloud.datastore_v1.types import query as query_types

_SERVICE = "google.datastore.v1.Datastore"
_Filter = query_types.PropertyFilter.Operator
_COMPARE: Mapping[int, Callable[[Any, Any], bool]] = {
    _Filter.LESS_THAN: operator.lt,
    _Filter.LESS_THAN_OR_EQUAL: operator.le,
    _Filter.GREATER_THAN: operator.gt,
    _Filter.GREATER_THAN_OR_EQUAL: operator.ge,
    _Filter.EQUAL: operator.eq,
}
_MAX_ENTITY_BYTES = 1_048_572


@dataclasses.dataclass(frozen=True)
class _Version:
    entity: Any
    number: int


class _Transaction:
    def __init__(self, snapshot: dict[bytes, _Version]) -> None:
        self.snapshot = snapshot
        self.read: set[bytes] = set()


class _RefusedError(Exception):
    def __init__(self, code: grpc.StatusCode, detail: str) -> None:
        self.code = code
        super().__init__(detail)


class CloudDatastore:
    """The server, as a context manager. ``calls`` has the names of the methods that were called, in order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entities: dict[bytes, _Version] = {}
        self._numbers = itertools.count(1)
        self._transactions: dict[bytes, _Transaction] = {}
        self.calls: list[str] = []
        self.is_down = False
        """Whether each call is answered with UNAVAILABLE."""
        self._server = grpc.server(futures.ThreadPoolExecutor(16), options=[("grpc.max_receive_message_length", -1)])
        methods = {
            "Lookup": (types.LookupRequest, self._lookup),
            "RunQuery": (types.RunQueryRequest, self._run_query),
            "BeginTransaction": (types.BeginTransactionRequest, self._begin),
            "Commit": (types.CommitRequest, self._commit),
            "Rollback": (types.RollbackRequest, self._rollback),
            "AllocateIds": (types.AllocateIdsRequest, self._allocate),
        }
        handlers = {name: self._method(name, *parts) for name, parts in methods.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> CloudDatastore:
        """Start the server."""
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server."""
        self._server.stop(None).wait(60)

    def names(self, kind: str) -> list[Any]:
        """Return the names or numbers of the entities of a kind, in every namespace."""
        with self._lock:
            keys = [version.entity.key for version in self._entities.values()]
        last = [key.path[-1] for key in keys]
        return [part.name or part.id for part in last if part.kind == kind]

    def clear(self) -> None:
        """Delete all entities."""
        with self._lock:
            self._entities.clear()
            self._transactions.clear()
            self.calls.clear()

    def _method(self, name: str, request_type: Any, answer: Callable[[Any], Any]) -> Any:
        def handle(request: Any, context: grpc.ServicerContext) -> Any:
            self.calls.append(name)
            if self.is_down:
                context.abort(grpc.StatusCode.UNAVAILABLE, "as told")
            try:
                with self._lock:
                    return answer(request)
            except _RefusedError as error:
                context.abort(error.code, str(error))

        return grpc.unary_unary_rpc_method_handler(
            handle,
            request_deserializer=request_type.pb().FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )

    def _view(self, options: Any) -> tuple[dict[bytes, _Version], _Transaction | None]:
        """Return what a read sees, and its transaction."""
        if not options.transaction:
            return self._entities, None
        transaction = self._transactions.get(options.transaction)
        if transaction is None:
            raise _RefusedError(grpc.StatusCode.INVALID_ARGUMENT, "The referenced transaction has expired.")
        return transaction.snapshot, transaction

    def _lookup(self, request: Any) -> Any:
        view, transaction = self._view(request.read_options)
        response = types.LookupResponse.pb()()
        for key in request.keys:
            identity = _identity(key)
            if transaction is not None:
                transaction.read.add(identity)
            version = view.get(identity)
            result = response.missing.add() if version is None else response.found.add()
            if version is None:
                result.entity.key.CopyFrom(key)
            else:
                result.entity.CopyFrom(version.entity)
                result.version = version.number
        return response

    def _run_query(self, request: Any) -> Any:
        view, transaction = self._view(request.read_options)
        query = request.query
        found = [
            (identity, version.entity)
            for identity, version in view.items()
            if version.entity.key.partition_id.namespace_id == request.partition_id.namespace_id
            and (not query.kind or version.entity.key.path[-1].kind == query.kind[0].name)
            and _matches(version.entity, query.filter)
        ]
        for order in reversed(query.order):
            descending = order.direction == query_types.PropertyOrder.Direction.DESCENDING
            name = order.property.name
            found = [pair for pair in found if name == "__key__" or name in pair[1].properties]
            found.sort(key=lambda pair: _sort_key(pair, name), reverse=descending)
        found = found[query.offset :]
        total = len(found)
        if query.HasField("limit"):
            found = found[: query.limit.value]
        if transaction is not None:
            transaction.read.update(identity for identity, _ in found)
        response = types.RunQueryResponse.pb()()
        batch = response.batch
        keys_only = [part.property.name for part in query.projection] == ["__key__"]
        kinds = query_types.EntityResult.ResultType
        batch.entity_result_type = int(kinds.KEY_ONLY if keys_only else kinds.FULL)
        batch.skipped_results = query.offset
        for number, (_, entity) in enumerate(found):
            result = batch.entity_results.add(cursor=str(number).encode())
            if keys_only:
                result.entity.key.CopyFrom(entity.key)
            else:
                result.entity.CopyFrom(entity)
        more = query_types.QueryResultBatch.MoreResultsType
        batch.more_results = int(more.MORE_RESULTS_AFTER_LIMIT if total > len(found) else more.NO_MORE_RESULTS)
        batch.end_cursor = b"end"
        return response

    def _begin(self, request: Any) -> Any:
        transaction = uuid.uuid4().bytes
        self._transactions[transaction] = _Transaction(dict(self._entities))
        return types.BeginTransactionResponse.pb()(transaction=transaction)

    def _rollback(self, request: Any) -> Any:
        self._transactions.pop(request.transaction, None)
        return types.RollbackResponse.pb()()

    def _allocate(self, request: Any) -> Any:
        response = types.AllocateIdsResponse.pb()()
        for key in request.keys:
            complete = response.keys.add()
            complete.CopyFrom(key)
            complete.path[-1].id = next(self._numbers)
        return response

    def _commit(self, request: Any) -> Any:
        written = [(name, getattr(each, name)) for each in request.mutations for name in [each.WhichOneof("operation")]]
        if request.transaction:
            transaction = self._transactions.pop(request.transaction, None)
            if transaction is None:
                raise _RefusedError(grpc.StatusCode.INVALID_ARGUMENT, "The referenced transaction has expired.")
            touched = transaction.read | {_identity(what if name == "delete" else what.key) for name, what in written}
            if any(self._entities.get(key) is not transaction.snapshot.get(key) for key in touched):
                raise _RefusedError(grpc.StatusCode.ABORTED, "Aborted due to cross-transaction contention.")
        for name, what in written:
            if name != "delete" and what.ByteSize() > _MAX_ENTITY_BYTES:
                raise _RefusedError(grpc.StatusCode.INVALID_ARGUMENT, "The entity is larger than 1048572 bytes.")
        response = types.CommitResponse.pb()()
        for name, what in written:
            result = response.mutation_results.add(version=next(self._numbers))
            if name == "delete":
                self._entities.pop(_identity(what), None)
                continue
            entity = entity_types.Entity.pb()()
            entity.CopyFrom(what)
            last = entity.key.path[-1]
            if not last.name and not last.id:
                last.id = next(self._numbers)
                result.key.CopyFrom(entity.key)
            self._entities[_identity(entity.key)] = _Version(entity, result.version)
        return response


def _identity(key: Any) -> bytes:
    """Return what two keys of the same entity have in common."""
    parts = [key.partition_id.namespace_id]
    parts += [f"{part.kind}\0{part.name or part.id!r}" for part in key.path]
    return "\1".join(parts).encode()


def _plain(value: Any) -> Any:
    kind = value.WhichOneof("value_type")
    if kind in (None, "null_value"):
        return None
    if kind == "timestamp_value":
        return value.timestamp_value.ToNanoseconds()
    return getattr(value, kind)


def _sort_key(pair: tuple[bytes, Any], name: str) -> Any:
    return pair[0] if name == "__key__" else _plain(pair[1].properties[name])


def _matches(entity: Any, condition: Any) -> bool:
    kind = condition.WhichOneof("filter_type")
    if kind is None:
        return True
    if kind == "composite_filter":
        return all(_matches(entity, each) for each in condition.composite_filter.filters)
    wanted = condition.property_filter
    if wanted.op == _Filter.HAS_ANCESTOR:
        ancestor = list(wanted.value.key_value.path)
        return list(entity.key.path)[: len(ancestor)] == ancestor
    name = wanted.property.name
    if name not in entity.properties:
        return False
    value = entity.properties[name]
    if value.exclude_from_indexes:
        return False
    found, limit = _plain(value), _plain(wanted.value)
    return found is not None and _COMPARE[wanted.op](found, limit)
