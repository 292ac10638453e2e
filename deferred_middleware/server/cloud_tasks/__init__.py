"""The API of Google Cloud Tasks v2, over gRPC and REST, on the task store of the local server."""
