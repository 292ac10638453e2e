"""An API server for benchmarks: answers the taskqueue's BulkAdd over ``/rpc_http`` after a given latency.

``python benchmarks/api_server.py --latency-ms 5`` prints its port and serves until its standard input ends.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

from google.appengine.api.taskqueue import taskqueue_service_bytes_pb2 as taskqueue_pb
from google.appengine.ext.remote_api import remote_api_bytes_pb2 as remote_api_pb


def work(number: int, text: str) -> None:
    """Do nothing: the function whose calls are enqueued."""


class Connection(asyncio.Protocol):
    """One connection of the SDK's client, which the client keeps open."""

    def __init__(self, latency_seconds: float) -> None:
        self._latency_seconds = latency_seconds
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport. asyncio has turned off Nagle's algorithm."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer a request once all of it has arrived."""
        self._received += data
        head, separator, body = bytes(self._received).partition(b"\r\n\r\n")
        if not separator:
            return
        lengths = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
        if len(body) < int(lengths[0].partition(b":")[2]):
            return
        self._received.clear()
        answer = _answer(body)
        if self._latency_seconds:
            asyncio.get_running_loop().call_later(self._latency_seconds, self._transport.write, answer)
        else:
            self._transport.write(answer)


def _answer(body: bytes) -> bytes:
    call = remote_api_pb.Request.FromString(body)
    request = taskqueue_pb.TaskQueueBulkAddRequest.FromString(call.request)
    response = taskqueue_pb.TaskQueueBulkAddResponse()
    for add in request.add_request:
        result = response.taskresult.add()
        result.result = taskqueue_pb.TaskQueueServiceError.OK
        if not add.task_name:
            result.chosen_task_name = os.urandom(8).hex().encode()
    content: bytes = remote_api_pb.Response(response=response.SerializeToString()).SerializeToString()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(content) + content


async def serve(latency_seconds: float) -> None:
    """Serve until the standard input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(latency_seconds), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency-ms", type=float, default=0)
    asyncio.run(serve(parser.parse_args().latency_ms / 1000))
