"""A deterministic simulation of the local server: the code that decides, driven from one seed."""
