"""A photo gallery on App Engine that defers its slow work: the routes, and how the app is wrapped."""

from __future__ import annotations

import logging

from deferred_middleware import DeferredMiddleware
from flask import Flask, Response, abort, jsonify, redirect, render_template, request, url_for
from google.appengine.api import wrap_wsgi_app
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as BaseResponse

import images
import models
import status
import tasks
from requestlog import RequestLog

MAX_FILE_BYTES = 20 * 1024 * 1024
PHOTOS_PER_PAGE = 48
FOREVER_SECONDS = 365 * 24 * 3600

logging.basicConfig(level=logging.INFO)

app = Flask(__name__)
# App Engine takes 32 MiB a request: https://cloud.google.com/appengine/docs/standard/how-requests-are-handled
app.config["MAX_CONTENT_LENGTH"] = 32 * 1024 * 1024
# From the outside in: the SDK's context, then the app's own middleware, then the one that runs tasks, then Flask. So
# the request log has a line and an ID for tasks as well as for pages.
app.wsgi_app = wrap_wsgi_app(RequestLog(DeferredMiddleware(app.wsgi_app)))  # type: ignore[method-assign]


@app.get("/")
def index() -> str:
    """Show a page of photographs, the newest first: ``?page=2`` shows older ones. Its script polls for changes."""
    return render_template("index.html", shown=_page(), max_megabytes=MAX_FILE_BYTES // 1024**2)


@app.get("/api/photos")
def photos() -> Response:
    """Return a page of photographs with the state of their pieces, or those that ``?id=…&id=…`` asks for."""
    ids = request.args.getlist("id")
    if ids:
        keys = [models.photo_key(photo_id) for photo_id in ids]
        response = jsonify(photos=status.describe([photo for photo in (key.get() for key in keys) if photo]))
    else:
        response = jsonify(_page())
    response.add_etag()
    return response.make_conditional(request)  # type: ignore[return-value]  # it returns the response itself


@app.post("/photos")
def upload() -> tuple[Response, int] | BaseResponse:
    """Store the photographs of a form, and defer the work on them. If one is invalid, none is stored."""
    files = [file for file in request.files.getlist("photo") if file.filename]
    if not files:
        abort(400, "No photograph was sent: choose at least one file.")
    checked = []
    for file in files:
        data = file.read()
        if len(data) > MAX_FILE_BYTES:
            abort(413, f"{file.filename}: larger than {MAX_FILE_BYTES // 1024**2} MB.")
        try:
            checked.append((str(file.filename), data, images.inspect(data)))
        except images.BadImageError as error:
            abort(400, f"{file.filename}: {error}")

    kept = [models.keep_photo(filename, data, facts, tasks.defer_everything) for filename, data, facts in checked]
    if _wants_json():
        return jsonify(photos=status.describe(kept)), 201
    return redirect(url_for("index"), 303)


@app.post("/photos/<photo_id>/delete")
def delete(photo_id: str) -> tuple[str, int] | BaseResponse:
    """Delete a photograph and everything that was made from it."""
    models.delete_photo(photo_id)
    return ("", 204) if _wants_json() else redirect(url_for("index"), 303)


@app.get("/photos/<photo_id>/original")
def original(photo_id: str) -> Response:
    """Send a photograph as it was uploaded."""
    photo = models.photo_key(photo_id).get()
    data = models.read_original(photo_id)
    if photo is None or data is None:
        abort(404, "There is no such photograph; it may have been deleted.")
    response = Response(data, mimetype=photo.media_type)
    response.headers.set("Content-Disposition", "inline", filename=photo.filename)
    return _kept_by_browsers(response)


@app.get("/photos/<photo_id>/<int:size_px>.jpg")
def thumbnail(photo_id: str, size_px: int) -> Response:
    """Send a thumbnail, once it has been made."""
    found = models.thumbnail_key(photo_id, size_px).get()
    if found is None:
        abort(404, "There is no such thumbnail, or not yet.")
    return _kept_by_browsers(Response(found.data, mimetype=images.THUMBNAIL_MEDIA_TYPE))


@app.errorhandler(HTTPException)
def refuse(error: HTTPException) -> tuple[Response | str, int]:
    """Describe the error: as a page to people, and as JSON to programs."""
    message = error.description or error.name
    code = error.code or 500
    if _wants_json():
        return jsonify(error=message), code
    return render_template("error.html", message=message, code=code, name=error.name), code


@app.after_request
def protect(response: Response) -> Response:
    """Let the browser run and show only content from this site."""
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Content-Security-Policy"] = "default-src 'self'; frame-ancestors 'none'"
    return response


def _page() -> dict[str, object]:
    """Return the page that the request asks for. A page beyond the last one, perhaps just deleted, is the last one."""
    asked = request.args.get("page", "1")
    if not asked.isascii() or not asked.isdigit() or not 1 <= len(asked) <= 9 or int(asked) < 1:
        abort(400, "The page must be a number from 1.")
    count = models.count_photos()
    pages = max(1, -(-count // PHOTOS_PER_PAGE))
    page = min(int(asked), pages)
    photos = models.newest_photos(PHOTOS_PER_PAGE, offset=(page - 1) * PHOTOS_PER_PAGE)
    return {"photos": status.describe(photos), "page": page, "pages": pages, "count": count}


def _wants_json() -> bool:
    return bool(request.accept_mimetypes.best == "application/json")


def _kept_by_browsers(response: Response) -> Response:
    """Mark content that never changes at its URL as cacheable."""
    response.cache_control.public = True
    response.cache_control.immutable = True
    response.cache_control.max_age = FOREVER_SECONDS
    return response
