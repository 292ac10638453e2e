"""The ways to enqueue: one call, many, a batch, a decorator, at the end of the request."""
