"""Which task runs next, where, and what becomes of it."""
