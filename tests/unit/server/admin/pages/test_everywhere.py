"""What every page offers: the colours, the keys, and the stream of changes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from deferred_middleware.server.admin.pages.all_pages import make_site
from deferred_middleware.server.admin.web.tools import PageTools
from deferred_middleware.server.admin.web.visitors import Visitors
from tests.support.visiting import FORM_TOKEN, RUN_TOKEN, Visitor


@pytest.mark.parametrize("theme", ["light", "dark", "auto"])
def test_the_colours_are_chosen_without_a_script(visitor: Visitor, theme: str) -> None:
    """The choice of colours is in every later page, and leads back to the page it was made on."""
    page = visitor.press(visitor.get("/keyboard"), theme.capitalize())

    assert "<h1>Keyboard</h1>" in page.html
    assert f'data-theme="{theme}"' in page.html
    assert f'data-theme="{theme}"' in visitor.get("/").html


@pytest.mark.parametrize("theme", ["blue", "", '"><script>'])
def test_other_colours_are_refused(visitor: Visitor, theme: str) -> None:
    """Only the three choices are taken."""
    assert visitor.post("/theme", theme=theme).status == 400


@pytest.mark.parametrize(
    "back", ["//evil.example/", "https://evil.example/", "/\\evil.example", "", "javascript:x", "/a\r\nX: y"]
)
def test_a_form_leads_back_to_this_server_only(visitor: Visitor, back: str) -> None:
    """A form can't lead to another host, nor add a header."""
    answer = visitor.post("/theme", theme="dark", back=back)

    assert answer.status == 303
    assert answer.header("Location") == "/"


def test_the_stream_tells_of_changes(visitor: Visitor) -> None:
    """The stream begins with an event, sends another one after a change, and ends when the server stops."""
    events = visitor.live.stream()
    seen = [next(events) for _ in range(2)]
    assert seen[1].startswith(b"event: changed")

    visitor.add()
    more = next(events)
    while more.startswith(b":"):
        more = next(events)
    assert more.startswith(b"event: changed")
    assert more != seen[1]

    timer = threading.Timer(0.05, visitor.live.close)
    timer.start()
    assert [event for event in events if not event.startswith(b":")] == []
    timer.join()


def test_the_stream_has_the_type_that_browsers_want(visitor: Visitor) -> None:
    """The answer is an event stream, which is not kept."""
    visitor.live.close()

    page = visitor.get("/live")

    assert page.header("Content-Type") == "text/event-stream"
    assert page.header("Cache-Control") == "no-store"
    assert page.html.startswith("retry: ")


@pytest.mark.parametrize(
    ("data_dir", "option"),
    [
        (str(Path(".deferred").absolute()), ""),
        (".deferred", ""),
        ("/tmp/my data", " --data-dir '/tmp/my data'"),
    ],
)
def test_each_command_finds_the_server(visitor: Visitor, data_dir: str, option: str) -> None:
    """If the server's data directory is not the usual one, the commands beside the buttons name it."""
    visitor.operations.about["data_dir"] = data_dir
    tools = PageTools(operations=visitor.operations, live=visitor.live, reports=visitor.reports)
    visitor.site = make_site(tools, Visitors(RUN_TOKEN), form_token=FORM_TOKEN)
    visitor.add()

    assert visitor.get("/").button("Pause default").command == f"deferred-middleware pause default{option}"
    assert visitor.get("/tasks/1").button("Run now").command == f"deferred-middleware run 1{option}"
