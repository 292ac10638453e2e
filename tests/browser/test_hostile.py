"""Hostile tasks are text, and other sites have no effect."""

from __future__ import annotations

import http.client
import http.server
import random
import threading
import urllib.parse
from collections.abc import Iterator

import pytest

from tests.browser.conftest import OpenPage, Site

ATTEMPTS = 10_000


def test_hostile_tasks_are_text(own_site: Site, open_page: OpenPage) -> None:
    """Nothing that a task has runs, moves, or hides anything on the page."""
    own_site.call("hostile")
    tasks = own_site.await_tasks("state=scheduled", 9)
    page = open_page(own_site.url + "/tasks")

    for path in ["/tasks", "/", *(f"/tasks/{task['id']}" for task in tasks)]:
        page.goto(own_site.url + path)
        assert page.evaluate("window.hit") is None
        text = page.content()
        assert not any(character in text for character in "\x1b\u202e\u2066")
        assert page.locator("img[src=x], main script").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    page.goto(own_site.url + "/tasks")
    assert page.get_by_text("\\u202egpj.exe").first.is_visible()
    assert "<script>window.hit" in page.inner_text("main")


class Evil:
    """Another site, on another port."""

    def __init__(self) -> None:
        self.page = b""
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                self.wfile.write(outer.page)

            def log_message(self, *_arguments: object) -> None:
                """Say nothing."""

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.host = f"127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stop it."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def evil() -> Iterator[Evil]:
    """Another site."""
    made = Evil()
    yield made
    made.close()


def test_other_sites_have_no_effect_in_the_browser(own_site: Site, open_page: OpenPage, evil: Evil) -> None:
    """Forms, fetches, images, frames and streams of another site change nothing and see nothing."""
    own_site.call("more")
    target = own_site.url
    forms = "".join(
        f'<form id="f{index}" method="post" action="{target}{path}" target="frame" enctype="{kind}">'
        '<input name="form_token" value="guess"><input name="typed" value="default"></form>'
        for index, (path, kind) in enumerate(
            (path, kind)
            for path in (
                "/queues/default/pause",
                "/queues/default/purge",
                "/tasks/1/delete",
                "/api/v1/queues/default/purge",
            )
            for kind in ("application/x-www-form-urlencoded", "text/plain", "multipart/form-data")
        )
    )
    evil.page = f"""<!doctype html><iframe name="frame"></iframe><iframe id="clicks" src="{target}/"></iframe>{forms}
        <img src="{target}/queues/default/pause"><script>
        window.seen = [];
        const ask = (path, options) => fetch("{target}" + path, options).then(r => r.text()).then(
            text => window.seen.push(text), () => window.seen.push(""));
        window.run = async () => {{
            for (const mode of ["cors", "no-cors", "same-origin"]) for (const method of ["GET", "POST"])
                for (const credentials of ["include", "omit"])
                    await ask(method === "GET" ? "/" : "/queues/default/pause",
                        {{mode, method, credentials, body: method === "POST" ? "form_token=x" : undefined}});
            for (const form of document.forms) form.submit();
            new EventSource("{target}/live").onmessage = e => window.seen.push(e.data);
            window.open("{target}/");
            return window.seen.filter(text => text.length > 0).length;
        }};</script>""".encode()
    page = open_page(f"http://{evil.host}/", allowed=target.split("/")[2])

    readable = page.evaluate("window.run()")
    page.wait_for_timeout(1000)

    assert readable == 0
    queue = next(one for one in own_site.api("queues")["queues"] if one["name"] == "default")
    assert (queue["paused"], queue["ready"]) == (False, 1)
    assert own_site.api("changes")["changes"] == []


def test_ten_thousand_forged_requests_change_nothing(own_site: Site) -> None:
    """Wrong hosts, origins, sites, methods and tokens, in every combination: no request changes or shows anything."""
    own_site.call("more")
    host = own_site.url.removeprefix("http://")
    chance = random.Random(20261128)
    hosts = (host, host, "evil.example", f"evil.example:{host.partition(':')[2]}", f"{host}.evil.example", "")
    origins = (None, None, "http://evil.example", "null", own_site.url, "http://127.0.0.1:1")
    sites = (None, None, "cross-site", "same-site", "none", "same-origin")
    paths = (
        *("/queues/default/pause", "/queues/default/purge", "/queues/default/undo-purge", "/tasks/1/delete"),
        *("/tasks/1/eta", "/tasks/1/run", "/tasks/change", "/tasks/all", "/theme"),
        *("/api/v1/queues/default/purge", "/api/v1/tasks/1/delete", "/api/v1/retry"),
    )
    connection = http.client.HTTPConnection(host, timeout=60)
    for _ in range(ATTEMPTS):
        headers = {
            "Content-Type": chance.choice(("application/x-www-form-urlencoded", "text/plain", "application/json"))
        }
        for name, value in (("Origin", chance.choice(origins)), ("Sec-Fetch-Site", chance.choice(sites))):
            if value is not None:
                headers[name] = value
        token = chance.choice(("", "guess", "0" * 64, "\ud800"))
        fields = {"form_token": token, "typed": "default", "number": "1", "action": "delete", "id": "1", "eta": "1d"}
        body = urllib.parse.urlencode(fields, errors="surrogatepass").encode()
        method = chance.choice(("POST", "POST", "POST", "GET", "PUT", "DELETE"))
        path = chance.choice(paths)
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", chance.choice(hosts))
        connection.putheader("X-Deferred-Admin-Token", token.encode("ascii", "replace").decode())
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        response.read()
        # The user of the server may look at the questions that these two paths ask.
        may_look = method == "GET" and path in ("/tasks/all", "/queues/default/purge")
        assert response.status in (400, 401, 403, 404, 405, *([200] if may_look else [])), (method, path)
    connection.close()

    queue = next(one for one in own_site.api("queues")["queues"] if one["name"] == "default")
    assert (queue["paused"], queue["ready"]) == (False, 1)
    assert own_site.api("changes")["changes"] == []
