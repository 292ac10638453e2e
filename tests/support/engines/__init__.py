"""One app on three engines: the local server, the SDK's own queue stub, and Cloud Tasks."""
