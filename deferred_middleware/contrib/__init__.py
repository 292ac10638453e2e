"""Glue for Flask, Django and webapp2: tasks run as requests of the framework, through the layers inside it."""
