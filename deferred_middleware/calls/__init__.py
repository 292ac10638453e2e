"""A call: what is deferred, its options, its name, and its bytes."""
