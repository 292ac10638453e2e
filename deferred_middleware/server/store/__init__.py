"""Tasks on disk: the only code with SQL."""
