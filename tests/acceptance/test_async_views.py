"""``async def`` views of Flask and Django defer calls in each way, under ``serve`` and on each Python.

asgiref runs such a view in a thread of its own. From Python 3.13 on, the SDK doesn't pass the request on to threads.
"""

from __future__ import annotations

import urllib.error
import urllib.parse
import urllib.request

import pytest

from tests.support.running import TELL, Recorder, Serve

WAYS = (
    TELL
    + """
import asyncio
import contextvars
import threading

from asgiref.sync import sync_to_async
from google.appengine.api import wrap_wsgi_app

from deferred_middleware import DeferredMiddleware, call, defer, defer_async, defer_batch, defer_many

def work(way):
    tell(ran=way)

def in_a_thread(run):
    failed = []

    def enqueue():
        try:
            run(defer, work, "thread")
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=enqueue)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]

async def enqueue(way):
    if way == "defer":
        defer(work, way)
    elif way == "with a target":
        defer(work, way, _target="default")
    elif way == "awaited":
        await defer_async(work, way)
    elif way == "left alone":
        defer_async(work, way)
    elif way == "batch":
        async with defer_batch():
            defer(work, way)
    elif way == "plain batch":
        with defer_batch():
            defer(work, way)
    elif way == "many":
        defer_many([call(work, way)])
    elif way == "to_thread":
        await asyncio.to_thread(defer, work, way)
    elif way == "sync_to_async":
        await sync_to_async(defer, thread_sensitive=False)(work, way)
    elif way == "the request's thread":
        await sync_to_async(defer)(work, way)
    elif way == "a thread with the context":
        in_a_thread(contextvars.copy_context().run)
    elif way == "a coroutine":
        defer(again, way)
    elif way == "a thread":
        in_a_thread(lambda function, *arguments: function(*arguments))

async def again(way):
    defer(work, way)
"""
)
FLASK = (
    WAYS
    + """
from flask import Flask, request

app = Flask(__name__)

@app.post("/")
async def view():
    await enqueue(request.args["way"])
    return "done"
"""
)
APPS = {
    "Flask, beneath": FLASK + "\napp.wsgi_app = wrap_wsgi_app(DeferredMiddleware(app.wsgi_app))\n",
    "Flask": FLASK
    + """
from deferred_middleware.contrib.flask import Deferred
Deferred(app)
app.wsgi_app = wrap_wsgi_app(app.wsgi_app)
""",
    "Django": WAYS
    + """
import django
from django.conf import settings

settings.configure(
    DEBUG=True,
    SECRET_KEY="k" * 50,
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["deferred_middleware.contrib.django"],
    MIDDLEWARE=["deferred_middleware.contrib.django.middleware.TaskMiddleware"],
    LOGGING_CONFIG=None,
)
django.setup()

from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import include, path

async def view(request):
    await enqueue(request.GET["way"])
    return HttpResponse("done")

urlpatterns = [path("", include("deferred_middleware.contrib.django.urls")), path("", view)]
app = wrap_wsgi_app(get_wsgi_application())
""",
}
"""The source of apps whose only view is asynchronous, by what they show."""


@pytest.mark.parametrize("app", APPS)
def test_async_views_defer(serve: Serve, recorder: Recorder, app: str) -> None:
    """Each way to enqueue works in an asynchronous view, and the calls run."""
    server = serve(APPS[app])
    ways = ["defer", "with a target", "awaited", "left alone", "batch", "plain batch", "many", "to_thread"]
    ways += ["sync_to_async", "the request's thread", "a coroutine"]

    for way in ways:
        post(server.services["default"], way)
        assert recorder.next() == {"ran": way}
    post(server.services["default"], "a thread with the context")
    assert recorder.next() == {"ran": "thread"}


def test_a_thread_without_the_request_is_told(serve: Serve, recorder: Recorder) -> None:
    """In a thread of the app's own, the call is enqueued, or the error says what to do on this Python."""
    server = serve(APPS["Flask"])

    try:
        post(server.services["default"], "a thread")
    except urllib.error.HTTPError as error:
        error.close()
        server.wait_for_output("the SDK doesn't pass the request on to threads")
        assert "contextvars.copy_context().run" in server.output
    else:
        assert recorder.next() == {"ran": "thread"}


def post(url: str, way: str) -> None:
    """Ask an app to enqueue in one way."""
    with urllib.request.urlopen(f"{url}/?way={urllib.parse.quote(way)}", b"", timeout=60) as answer:
        assert answer.read() == b"done"
