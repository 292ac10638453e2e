"""The pictures of the page in the documentation: ``make screenshots`` takes them, from a real server with sample tasks.

Without the variable ``DEFERRED_SCREENSHOTS``, which names the directory for the pictures, nothing is written. The tests
then compare each picture that the documentation shows with the page as it is now.
"""

from __future__ import annotations

import dataclasses
import io
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image, ImageChops, ImageStat
from playwright.sync_api import expect

from deferred_middleware.server.store.records import Lane
from deferred_middleware.server.store.store import TaskStore
from tests.browser.conftest import MAIN, OpenPage, Site
from tests.support.repository import ROOT
from tests.support.storing import completion, new_task

DIRECTORY = os.environ.get("DEFERRED_SCREENSHOTS", "")
WIDTH, HEIGHT = 1180, 760
MAX_BYTES = 150_000
# How far the grey of a small copy may be from that of the page on average, of 255. Times and fonts differ between two
# runs; another page, or another design, differs by more.
MOST_DIFFERENT = 12

ORDERS = '''
from deferred_middleware import defer

class PaymentDeclined(Exception):
    """The bank said no."""

def charge(order_id, amount):
    reserve(order_id, amount)

def reserve(order_id, amount):
    raise PaymentDeclined(f"order {order_id}: insufficient funds")

def send_digest(weekday):
    pass
'''
IMAGES = """
import time

def resize(path, width):
    time.sleep(600)
"""
SHOP = """
from deferred_middleware import defer
import images, orders

def fill():
    for number in range(7):
        defer(images.resize, f"/photos/{number + 1}.jpg", 1600, _queue="images")
    for hours, weekday in enumerate(("Monday", "Tuesday", "Wednesday"), 1):
        defer(orders.send_digest, weekday, _countdown=3600 * hours)
    for week in (46, 47):
        defer(orders.send_digest, f"week {week}", _queue="reports")
    for order in (4711, 4718):
        defer(orders.charge, order, amount=99.0, _retry_options={"min_backoff_seconds": 600})
    defer(orders.charge, 4702, amount=12.5, _retry_options={"task_retry_limit": 1, "min_backoff_seconds": 0.1})
"""
QUEUES = """
queue:
- name: default
- name: mail
  rate: 100/s
  bucket_size: 100
- name: images
  max_concurrent_requests: 2
- name: reports
  rate: 0
"""
# Queue, function, how many in a minute, and how many milliseconds each takes.
EARLIER = (
    ("mail", "mail/send_welcome", 30, 45),
    ("mail", "mail/send_receipt", 12, 80),
    ("images", "images/resize", 6, 700),
    ("default", "orders/charge", 4, 220),
)


class Picture(NamedTuple):
    """A picture: the page's path, or ``TASK`` and a query that finds a task; its heading; and what it is shown at."""

    path: str
    heading: str
    wait_for: str


PICTURES = {
    "overview": Picture("/", "Overview", "Needs a look"),
    "task": Picture("TASK queue=images&state=due", "Task ", "Only 2 of queue images may run at the same time"),
    "failure": Picture("/failures/1", "orders.PaymentDeclined", "insufficient funds"),
    "functions": Picture("/functions", "Functions", "mail/send_welcome"),
}


def work_for_an_hour(directory: Path) -> None:
    """Write a store in which the last hour's tasks have run: the store's own code, with another clock."""
    now = time.time()
    clock = [now]
    (directory / ".deferred").mkdir(mode=0o700)
    store = TaskStore(directory / ".deferred" / "tasks.sqlite", clock=lambda: clock[0])
    chance = random.Random(1)
    for minute in range(58, 0, -1):
        clock[0] = now - 60 * minute
        usec = int(clock[0] * 1e6)
        for queue, function, number, milliseconds in EARLIER:
            many = chance.randint(number // 2, number + number // 2)
            store.add([new_task(queue=queue, url=f"/_cb/deferred/{function}", eta_usec=usec)] * many)
            results = []
            for task in store.claim({Lane(queue, ""): many}, usec):
                took = int(milliseconds * 1000 * chance.lognormvariate(0, 0.3))
                made = completion(task, finished_usec=usec + took, excerpt=b"")
                attempt = dataclasses.replace(
                    made.attempt, started_usec=usec, duration_usec=took, status=200, reason=None
                )
                waited = int(1000 * chance.uniform(1, 9))
                results.append(
                    dataclasses.replace(
                        made, attempt=attempt, waited_usec=waited, first_attempt_usec=usec, previous_response=200
                    )
                )
            assert all(store.complete(results))
    store.close()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server of a shop, with an hour of work behind it."""
    files = {"main.py": MAIN, "shop.py": SHOP, "images.py": IMAGES, "orders.py": ORDERS, "queue.yaml": QUEUES}
    # The directory is in the pictures.
    directory = Path(tempfile.gettempdir(), "shop") if DIRECTORY else tmp_path_factory.mktemp("shop") / "shop"
    made = Site(directory, files=files, prepare=work_for_an_hour)
    made.call("fill")
    made.await_tasks("state=failed", 1)
    made.await_tasks("state=retrying", 2)
    made.await_tasks("queue=images&state=running", 2)
    yield made
    made.close()
    if DIRECTORY:
        shutil.rmtree(directory)


def grey(picture: Image.Image) -> Image.Image:
    """Return a small grey copy, in which a line of text is a shade."""
    return picture.convert("L").resize((WIDTH // 20, HEIGHT // 20), Image.Resampling.BOX)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PICTURES)
def test_the_documentation_shows_the_page_as_it_is(shop: Site, open_page: OpenPage, name: str, scheme: str) -> None:
    """Each picture is one of a page that exists, in this scheme, small, and shown in the documentation."""
    picture = PICTURES[name]
    path = picture.path
    if path.startswith("TASK "):
        path = f"/tasks/{shop.api('tasks?' + path[5:])['tasks'][0]['id']}"
    page = open_page(shop.url + path, color_scheme=scheme, viewport={"width": WIDTH, "height": HEIGHT})
    expect(page.get_by_role("heading", level=1)).to_contain_text(picture.heading)
    expect(page.locator("main")).to_contain_text(picture.wait_for)
    now = Image.open(io.BytesIO(page.screenshot()))
    file = f"{name}-{scheme}.png"
    if DIRECTORY:
        Path(DIRECTORY).mkdir(exist_ok=True)
        now.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(Path(DIRECTORY, file), optimize=True)
        return

    shown = ROOT / "docs" / "images" / file
    assert shown.stat().st_size <= MAX_BYTES
    with Image.open(shown) as documented:
        assert documented.size == now.size == (WIDTH, HEIGHT)
        difference = ImageStat.Stat(ImageChops.difference(grey(documented), grey(now))).mean[0]
    assert difference < MOST_DIFFERENT, "the page has changed: take the pictures again with 'make screenshots'"
    assert f".. image:: images/{file}\n" in (ROOT / "docs" / "page.rst").read_text()


def test_no_picture_is_left_over() -> None:
    """Each picture in ``docs/images`` is one of these, and the README shows one of them."""
    files = {path.name for path in (ROOT / "docs" / "images").iterdir()}

    assert files == {f"{name}-{scheme}.png" for name in PICTURES for scheme in ("light", "dark")}
    assert ".. image:: docs/images/overview-light.png\n" in (ROOT / "README.rst").read_text()
