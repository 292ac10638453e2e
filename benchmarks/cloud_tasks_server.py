"""A Cloud Tasks server that takes each task after a latency, and keeps none: the peer of ``enqueue.py``.

It prints its port, and ends when its standard input is closed.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent import futures
from typing import Any

import grpc
from google.cloud import tasks_v2
from google.longrunning import operations_pb2


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency-ms", type=float, default=0.0)
    latency_seconds = parser.parse_args().latency_ms / 1000

    def create(request: Any, context: grpc.ServicerContext) -> Any:
        time.sleep(latency_seconds)
        return tasks_v2.Task.pb()(name=request.task.name or f"{request.parent}/tasks/1")

    def create_batch(request: Any, context: grpc.ServicerContext) -> Any:
        time.sleep(latency_seconds)
        created = tasks_v2.BatchCreateTasksResponse.pb()()
        for each in request.requests:
            created.tasks.add(name=each.task.name)
        operation = operations_pb2.Operation(name="done", done=True)
        operation.metadata.Pack(tasks_v2.BatchCreateTasksMetadata.pb()())
        operation.response.Pack(created)
        return operation

    def method(handler: Any, request_type: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(
            handler,
            request_deserializer=request_type.pb().FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )

    server = grpc.server(futures.ThreadPoolExecutor(32))
    handlers = {
        "CreateTask": method(create, tasks_v2.CreateTaskRequest),
        "BatchCreateTasks": method(create_batch, tasks_v2.BatchCreateTasksRequest),
    }
    service = "google.cloud.tasks.v2.CloudTasks"
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    sys.stdin.read()
    server.stop(None)


if __name__ == "__main__":
    main()
