"""Modules to import in place of the older libraries'.

``from deferred_middleware.compat import deferred`` in place of ``from google.appengine.ext import deferred``, and
``from deferred_middleware.compat import tasks`` in place of freshplanet's ``tasks``.
"""
