"""The gallery example through its own WSGI stack, on the SDK's in-process stubs."""

from __future__ import annotations

import base64
import importlib
import io
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from wsgiref.validate import validator

import pytest
from PIL import Image

GALLERY = Path(__file__).resolve().parents[2] / "examples" / "gallery"
MODULES = ("images", "main", "models", "requestlog", "status", "tasks")
JSON = {"Accept": "application/json"}


def picture(width_px: int = 400, height_px: int = 300, kind: str = "PNG", noise: bool = False) -> bytes:
    """Return a picture as the bytes of a file."""
    file = io.BytesIO()
    made = Image.effect_noise((width_px, height_px), 90) if noise else Image.new("L", (width_px, height_px), 90)
    made.convert("RGB").save(file, kind)
    return file.getvalue()


class Gallery:
    """The example's app, a client for it, and a queue whose tasks the test delivers."""

    def __init__(self, main: ModuleType, taskqueue: Any) -> None:
        self.main = main
        self.client = main.app.test_client()
        self.taskqueue = taskqueue

    def upload(self, *files: tuple[str, bytes], **headers: str) -> Any:
        """Upload files as the page's form does."""
        from werkzeug.datastructures import FileStorage, MultiDict
        from werkzeug.test import encode_multipart

        parts = MultiDict([("photo", FileStorage(io.BytesIO(data), name)) for name, data in files])
        boundary, body = encode_multipart(parts)  # in memory, because the client itself leaves a temporary file open
        return self.client.post(
            "/photos", data=body, content_type=f"multipart/form-data; boundary={boundary}", headers=headers or JSON
        )

    def photos(self) -> list[dict[str, Any]]:
        """Request the list of photographs."""
        return list(self.client.get("/api/photos").get_json()["photos"])

    def tasks(self) -> list[dict[str, Any]]:
        """Return the queued tasks."""
        return list(self.taskqueue.GetTasks("default"))

    def deliver(self, task: dict[str, Any], retry_count: int = 0) -> Any:
        """Deliver one task as the queue does."""
        return self.client.post(
            task["url"],
            buffered=True,
            data=base64.b64decode(task["body"]),
            environ_overrides={"SERVER_SOFTWARE": "gunicorn/23.0.0"},
            headers={
                "X-AppEngine-QueueName": "default",
                "X-AppEngine-TaskName": task["name"],
                "X-AppEngine-TaskRetryCount": str(retry_count),
                "X-AppEngine-TaskExecutionCount": str(retry_count),
            },
        )

    def run_all(self) -> None:
        """Deliver every task."""
        for task in self.tasks():
            assert self.deliver(task).status_code == 200


@pytest.fixture
def gallery(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gallery]:
    """Set up the example's app with empty stubs, without wrap_wsgi_app, which changes the whole process."""
    from google.appengine import api
    from google.appengine.ext import testbed

    monkeypatch.syspath_prepend(str(GALLERY))
    monkeypatch.setattr(api, "wrap_wsgi_app", lambda app: app)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    bed = testbed.Testbed()
    bed.activate()
    bed.init_datastore_v3_stub()
    bed.init_memcache_stub()
    bed.init_app_identity_stub()
    bed.init_taskqueue_stub()
    for name in MODULES:
        sys.modules.pop(name, None)
    try:
        yield Gallery(importlib.import_module("main"), bed.get_stub(testbed.TASKQUEUE_SERVICE_NAME))
    finally:
        bed.deactivate()
        for name in MODULES:
            sys.modules.pop(name, None)


def test_an_upload_is_answered_before_the_work_is_done(gallery: Gallery) -> None:
    """After an upload the photograph is listed as queued at once, with a task for each of its pieces."""
    answer = gallery.upload(("sea.png", picture()))
    assert answer.status_code == 201
    (photo,) = gallery.photos()
    assert (photo["filename"], photo["width"], photo["height"], photo["state"]) == ("sea.png", 400, 300, "queued")
    assert [task["url"] for task in gallery.tasks()].count("/_cb/deferred/tasks/make_thumbnail") == 4
    assert [task["url"] for task in gallery.tasks()].count("/_cb/deferred/tasks/extract_palette") == 1


def test_a_photograph_is_complete_when_its_tasks_have_run(gallery: Gallery) -> None:
    """After all tasks, every thumbnail has its size, the palette exists, and each run has a record."""
    gallery.upload(("sea.png", picture()))
    gallery.run_all()
    (photo,) = gallery.photos()
    assert photo["state"] == "complete"
    for piece in photo["pieces"][:-1]:
        thumbnail = gallery.client.get(piece["url"])
        assert max(Image.open(io.BytesIO(thumbnail.data)).size) == min(int(piece["name"]), 400)
    assert photo["palette"] == [{"colour": "#5a5a5a", "share": 1.0}]
    run = photo["pieces"][0]
    assert (run["function"], run["queue"], run["attempts"]) == ("tasks/make_thumbnail", "default", 1)
    assert run["task"] in [task["name"] for task in gallery.tasks()]


def test_the_state_counts_up_while_tasks_run(gallery: Gallery) -> None:
    """After one of five tasks, the photograph's state is "working", and one piece is done."""
    gallery.upload(("sea.png", picture()))
    gallery.deliver(gallery.tasks()[0])
    (photo,) = gallery.photos()
    assert photo["state"] == "working"
    assert [piece["state"] for piece in photo["pieces"]].count("done") == 1


def test_a_task_delivered_twice_changes_nothing(gallery: Gallery) -> None:
    """A second delivery of a task that succeeded gets a success and keeps the first delivery's record."""
    gallery.upload(("sea.png", picture()))
    gallery.run_all()
    before = gallery.photos()
    for task in gallery.tasks():
        assert gallery.deliver(task, retry_count=1).status_code == 200
    assert gallery.photos() == before


def test_a_failure_is_shown_and_retried(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a task raises, it gets a 500, the page shows its error, and a later attempt completes it."""
    gallery.upload(("sea.png", picture()))
    task = next(task for task in gallery.tasks() if "palette" in task["url"])
    images = sys.modules["images"]
    with monkeypatch.context() as broken:
        broken.setattr(images, "palette", lambda data: 1 / 0)
        assert gallery.deliver(task).status_code == 500
    (photo,) = gallery.photos()
    assert (photo["state"], photo["pieces"][-1]["state"]) == ("retrying", "retrying")
    assert "ZeroDivisionError" in photo["pieces"][-1]["error"]
    assert gallery.deliver(task, retry_count=1).status_code == 200
    (photo,) = gallery.photos()
    assert (photo["pieces"][-1]["state"], photo["pieces"][-1]["attempts"]) == ("done", 2)


def test_a_picture_that_can_never_be_made_fails_for_good(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a task finds that the picture is broken, it fails permanently, and the page shows that."""
    gallery.upload(("sea.png", picture()))
    images = sys.modules["images"]

    def refuse(data: bytes, longest_px: int) -> None:
        raise images.BadImageError("it is bad")

    monkeypatch.setattr(images, "scale", refuse)
    answer = gallery.deliver(next(task for task in gallery.tasks() if "thumbnail" in task["url"]))
    assert (answer.status_code, answer.headers["X-Deferred-Outcome"]) == (200, "permanent-failure")
    (photo,) = gallery.photos()
    assert photo["state"] == "failed"


def test_an_original_larger_than_an_entity_comes_back_whole(gallery: Gallery) -> None:
    """A photograph of more than 1 MiB is stored in several entities and returned byte for byte."""
    data = picture(1400, 1000, noise=True)
    assert len(data) > 1024 * 1024
    gallery.upload(("big.png", data))
    answer = gallery.client.get(gallery.photos()[0]["original"])
    assert answer.data == data
    assert answer.mimetype == "image/png"


@pytest.mark.parametrize(
    "data", [b"", b"not a picture", picture(noise=True)[:9000]], ids=["empty", "text", "cut short"]
)
def test_a_broken_photograph_is_refused(gallery: Gallery, data: bytes) -> None:
    """A file that is not a picture gets a 400 with a reason that names the file, and nothing is stored."""
    answer = gallery.upload(("notes.png", data))
    assert answer.status_code == 400
    assert answer.get_json()["error"].startswith("notes.png: ")
    assert (gallery.photos(), gallery.tasks()) == ([], [])


def test_one_broken_photograph_refuses_the_form(gallery: Gallery) -> None:
    """If a form has a good and a broken file, neither is stored."""
    assert gallery.upload(("good.png", picture()), ("bad.png", b"no")).status_code == 400
    assert gallery.photos() == []


def test_a_form_without_files_is_refused(gallery: Gallery) -> None:
    """An empty form gets a 400 and a page that says what to do."""
    answer = gallery.client.post("/photos", data={})
    assert answer.status_code == 400
    assert "choose at least one file" in answer.get_data(as_text=True)


def test_a_file_that_is_too_large_is_refused(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file above the limit gets a 413 with the file's name."""
    monkeypatch.setattr(gallery.main, "MAX_FILE_BYTES", 100)
    answer = gallery.upload(("sea.png", picture()))
    assert answer.status_code == 413
    assert "sea.png" in answer.get_json()["error"]


def test_a_browser_without_script_is_led_back(gallery: Gallery) -> None:
    """An upload by the plain form gets a redirect to the page."""
    answer = gallery.upload(("sea.png", picture()), Accept="text/html,*/*;q=0.8")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")


def test_a_failed_enqueue_leaves_no_photograph(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a photograph's tasks can't be enqueued, the photograph is not stored, and the error is raised."""

    def no_queue(photo_id: str) -> None:
        raise OSError("no queue")

    monkeypatch.setattr(sys.modules["tasks"], "defer_everything", no_queue)
    assert gallery.upload(("sea.png", picture())).status_code == 500
    assert gallery.photos() == []


def test_deletion_removes_everything(gallery: Gallery) -> None:
    """Deleting a photograph leaves no entity, even if one of its tasks runs later."""
    from google.appengine.ext import ndb

    gallery.upload(("sea.png", picture()))
    first, *others = gallery.tasks()
    gallery.deliver(first)
    assert gallery.client.post(gallery.photos()[0]["delete"], headers=JSON).status_code == 204
    for task in others:
        assert gallery.deliver(task).status_code == 200
    assert ndb.Query().fetch(keys_only=True) == []


def test_what_is_not_there_is_not_found(gallery: Gallery) -> None:
    """The addresses of photographs and thumbnails that don't exist get a 404."""
    for path in ("/photos/nothing/original", "/photos/nothing/320.jpg"):
        assert gallery.client.get(path).status_code == 404


def test_the_list_can_be_asked_for_by_id_and_by_etag(gallery: Gallery) -> None:
    """Photographs can be requested by id; an unchanged list gets a 304."""
    for name in ("one.png", "two.png"):
        gallery.upload((name, picture()))
    wanted = gallery.photos()[1]["id"]
    chosen = gallery.client.get(f"/api/photos?id={wanted}&id=unknown").get_json()["photos"]
    assert [photo["id"] for photo in chosen] == [wanted]
    etag = gallery.client.get("/api/photos").headers["ETag"]
    assert gallery.client.get("/api/photos", headers={"If-None-Match": etag}).status_code == 304


def test_all_photographs_are_shown_by_pages(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each photograph is on one page, the newest first. A page that no longer exists is the last page."""
    monkeypatch.setattr(gallery.main, "PHOTOS_PER_PAGE", 2)
    for number in range(5):
        gallery.upload((f"{number}.png", picture()))

    def names(query: str) -> tuple[list[str], int, int, int]:
        shown = gallery.client.get(f"/api/photos{query}").get_json()
        return [photo["filename"] for photo in shown["photos"]], shown["page"], shown["pages"], shown["count"]

    assert names("") == names("?page=1") == (["4.png", "3.png"], 1, 3, 5)
    assert names("?page=2") == (["2.png", "1.png"], 2, 3, 5)
    assert names("?page=3") == names("?page=999") == (["0.png"], 3, 3, 5)
    gallery.client.post(gallery.client.get("/api/photos?page=3").get_json()["photos"][0]["delete"])
    assert names("?page=3") == (["2.png", "1.png"], 2, 2, 4)


def test_the_page_links_to_the_other_pages(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first page links to older photographs, the last one to newer ones, and a single page to none."""
    monkeypatch.setattr(gallery.main, "PHOTOS_PER_PAGE", 1)

    def links(path: str) -> list[str]:
        page = gallery.client.get(path).get_data(as_text=True)
        return [tag for tag in re.findall(r'<(?:a|nav) id="(\w+)"[^>]*>', page) if not _is_hidden(page, tag)]

    assert links("/") == []
    for name in ("one.png", "two.png"):
        gallery.upload((name, picture()))
    assert links("/") == ["pages", "older"]
    assert links("/?page=2") == ["pages", "newer"]
    assert 'href="/?page=2"' in gallery.client.get("/").get_data(as_text=True)


def _is_hidden(page: str, identity: str) -> bool:
    """Tell whether the element, or the one around the links, is hidden."""
    hidden = [re.search(rf'id="{name}"[^>]* hidden>', page) is not None for name in ("pages", identity)]
    return any(hidden)


@pytest.mark.parametrize("page", ["0", "-1", "x", "", "1.5", "²", "9" * 5000])
def test_a_page_that_is_no_number_is_refused(gallery: Gallery, page: str) -> None:
    """A wrong page gets a 400 and a sentence, as a page and as JSON."""
    answer = gallery.client.get("/api/photos", query_string={"page": page}, headers=JSON)
    assert (answer.status_code, answer.get_json()) == (400, {"error": "The page must be a number from 1."})
    assert gallery.client.get("/", query_string={"page": page}).status_code == 400


def test_the_page_carries_its_first_state(gallery: Gallery) -> None:
    """The page contains the list, safely quoted, and its policy allows only scripts from the app itself."""
    gallery.upload(("</script><b>x.png", picture()))
    answer = gallery.client.get("/")
    assert "</script><b>" not in answer.get_data(as_text=True)
    assert "\\u003cb\\u003ex.png" in answer.get_data(as_text=True)
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'")


def test_tasks_pass_through_the_request_log(gallery: Gallery, caplog: pytest.LogCaptureFixture) -> None:
    """The app's own middleware runs for tasks: it adds its header, its log line and the request's id."""
    gallery.upload(("sea.png", picture()))
    with caplog.at_level(logging.INFO, "gallery.requests"):
        answer = gallery.deliver(gallery.tasks()[0])
    request_id = answer.headers["X-Request-Id"]
    assert request_id in [piece.get("request_id") for piece in gallery.photos()[0]["pieces"]]
    (line,) = [record.getMessage() for record in caplog.records if request_id in record.getMessage()]
    assert line.startswith(f"{request_id} POST /_cb/deferred/tasks/")
    assert " 200 " in line


def test_the_request_log_needs_no_close(gallery: Gallery, caplog: pytest.LogCaptureFixture) -> None:
    """A response that is read to its end but never closed, as the SDK leaves it, is logged exactly once."""
    requestlog = sys.modules["requestlog"]
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/x"}
    body = requestlog.RequestLog(lambda environ, start_response: [b"a", b"b"])(environ, None)
    with caplog.at_level(logging.INFO, "gallery.requests"):
        assert list(body) == [b"a", b"b"]
        assert len(caplog.messages) == 1
        body.close()
    assert len(caplog.messages) == 1


def test_the_request_log_is_a_valid_middleware(gallery: Gallery, caplog: pytest.LogCaptureFixture) -> None:
    """The request log follows the rules of WSGI on both sides, and measures the time with its clock."""
    requestlog = sys.modules["requestlog"]
    times = iter([10.0, 10.25])

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [requestlog.current_request_id().encode()]

    wrapped = validator(requestlog.RequestLog(validator(app), clock=lambda: next(times)))
    client = importlib.import_module("werkzeug.test").Client(wrapped)
    with caplog.at_level(logging.INFO, "gallery.requests"):
        answer = client.get("/x", query_string="a=1", buffered=True)
    assert answer.data.decode() == answer.headers["X-Request-Id"]
    assert caplog.messages == [f"{answer.headers['X-Request-Id']} GET /x 200 250 ms"]
    assert requestlog.current_request_id() == ""


@pytest.mark.parametrize(("file", "service"), [("app.yaml", None), ("background.yaml", "background")])
def test_it_deploys_as_two_services(file: str, service: str | None) -> None:
    """The SDK's parser accepts both files, and both send tasks to ``background``."""
    from google.appengine.api import appinfo

    parsed = appinfo.LoadSingleAppInfo((GALLERY / file).read_text())
    assert (parsed.runtime, parsed.service) == ("python312", service)
    assert parsed.env_variables["DEFERRED_BACKGROUND_MODULE"] == "background"
    assert parsed.entrypoint.endswith("main:app")
