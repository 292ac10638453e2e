"""Modules with the names and signatures of the older libraries, to import instead of those."""
