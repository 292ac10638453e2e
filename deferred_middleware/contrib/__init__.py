"""Glue for frameworks whose layers live inside them: tasks run as requests of the framework, not beneath it."""
