"""Counts visits in tasks that can use webapp2's request."""

from __future__ import annotations

import webapp2
from google.appengine.api import wrap_wsgi_app
from google.appengine.ext import ndb

from deferred_middleware import defer
from deferred_middleware.contrib.webapp2 import Deferred


class Visit(ndb.Model):  # type: ignore[misc] # the SDK has no types
    """One visit. Its ID is the name of the task that recorded it."""

    path = ndb.StringProperty(required=True)
    noted_at = ndb.StringProperty(required=True)


class Welcome(webapp2.RequestHandler):  # type: ignore[misc] # webapp2 has no types
    """Greets the visitor, and defers recording the visit."""

    def get(self) -> None:
        """Greet."""
        defer(note, self.request.path)
        self.response.write("welcome")


class Visits(webapp2.RequestHandler):  # type: ignore[misc] # webapp2 has no types
    """Shows the visits."""

    def get(self) -> None:
        """Show each visit, and the path of the request that recorded it."""
        for visit in Visit.query():
            self.response.write(f"{visit.path} noted at {visit.noted_at}\n")


def note(path: str) -> None:
    """Record a visit. The entity has the task's name as its ID, so a second delivery records nothing more."""
    request = webapp2.get_request()
    Visit(id=request.headers["X-AppEngine-TaskName"], path=path, noted_at=request.path).put()


app = wrap_wsgi_app(Deferred(webapp2.WSGIApplication([("/visits", Visits), ("/.*", Welcome)])))
