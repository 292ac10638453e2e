"""A guest book: a task moderates each entry, as a request of the Flask app."""

from __future__ import annotations

import flask
from google.appengine.api import wrap_wsgi_app
from google.appengine.ext import ndb

from deferred_middleware import defer
from deferred_middleware.contrib.flask import Deferred

app = flask.Flask(__name__)
Deferred(app)


class Entry(ndb.Model):  # type: ignore[misc] # the SDK has no types
    """A guest's entry, and the moderation's verdict once there is one."""

    text = ndb.TextProperty(required=True)
    verdict = ndb.StringProperty()


@app.before_request
def open_request() -> None:
    """Runs for pages and for tasks."""
    flask.g.reviewer = f"{flask.current_app.name}, in {flask.request.endpoint}"


@app.post("/sign")
def sign() -> tuple[str, int]:
    """Store an entry, and defer its moderation."""
    key = Entry(text=flask.request.get_data(as_text=True)).put()
    defer(read_over, key.id())
    return "", 202


@app.get("/")
def entries() -> dict[str, str | None]:
    """Show the entries and their verdicts."""
    return {entry.text: entry.verdict for entry in Entry.query()}


def read_over(entry_id: int) -> None:
    """Moderate an entry. A second run comes to the same verdict."""
    entry = Entry.get_by_id(entry_id)
    verdict = "hidden" if "spam" in entry.text else "shown"
    entry.verdict = f"{verdict} by {flask.g.reviewer}"
    entry.put()


app.wsgi_app = wrap_wsgi_app(app.wsgi_app)  # type: ignore[method-assign]
