"""A visitor of the pages without a browser: it loads pages of a store, and presses their buttons."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

from deferred_middleware.server.admin.change_log import ChangeLog
from deferred_middleware.server.admin.operations import Operations
from deferred_middleware.server.admin.pages.all_pages import make_site
from deferred_middleware.server.admin.reports.cron import SendCron
from deferred_middleware.server.admin.reports.reports import Reports
from deferred_middleware.server.admin.reports.sdk_data import SdkServices
from deferred_middleware.server.admin.web.live import LiveUpdates
from deferred_middleware.server.admin.web.tools import PageTools
from deferred_middleware.server.admin.web.traceback_view import EDITORS
from deferred_middleware.server.admin.web.visitors import Visitors
from deferred_middleware.server.config.queues import QueueConfig, QueueRegistry
from deferred_middleware.server.store.records import NewTask
from deferred_middleware.server.store.store import TaskStore

FORM_TOKEN = "the-token-of-forms"
RUN_TOKEN = "the-token-of-this-run"


class Button:
    """A button of a page: what its form posts, and where to."""

    def __init__(self, label: str, path: str, fields: list[tuple[str, str]], command: str) -> None:
        self.label = label
        self.path = path
        self.fields = fields
        self.command = command


class _Forms(HTMLParser):
    """Collects the texts and the buttons of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.buttons: list[Button] = []
        self._path = ""
        self._fields: list[tuple[str, str]] = []
        self._inside: list[str] = []

    def handle_starttag(self, tag: str, given: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in given}
        if tag == "form":
            self._path, self._fields = attributes.get("action", ""), []
        elif tag in ("input", "select", "textarea") and "name" in attributes:
            if attributes.get("type") not in ("checkbox", "radio") or "checked" in attributes:
                self._fields.append((attributes["name"], attributes.get("value", "")))
        elif tag == "button":
            pressed = [(attributes["name"], attributes.get("value", ""))] if "name" in attributes else []
            path = attributes.get("formaction", self._path)
            self.buttons.append(Button("", path, [*self._fields, *pressed], ""))
        if tag in ("button", "code", "style", "script"):
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._inside and tag == self._inside[-1]:
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if "button" in self._inside:
            self.buttons[-1].label += data
        elif "code" in self._inside and self.buttons and not self.buttons[-1].command:
            self.buttons[-1].command = data


class Page:
    """An answer: its status, its headers, and its content."""

    def __init__(self, status: str, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status = int(status.split()[0])
        self.headers = headers
        self.body = body
        self.html = body.decode()
        forms = _Forms()
        if self.header("Content-Type").startswith("text/html"):
            forms.feed(self.html)
        self.text = re.sub(r"\s+", " ", " ".join(forms.texts))
        self.buttons = forms.buttons

    def header(self, name: str) -> str:
        """Return a header; empty if there is none."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), "")

    def button(self, label: str) -> Button:
        """Return the only button with this label."""
        found = [button for button in self.buttons if " ".join(button.label.split()) == label]
        assert len(found) == 1, [button.label for button in self.buttons]
        return found[0]


class Visitor:
    """Visits the pages of ``store``. ``woken`` counts how often the scheduler was woken."""

    def __init__(
        self,
        store: TaskStore,
        *queues: QueueConfig,
        read_only: bool = False,
        queue_yaml: Path | None = None,
        cron_directories: tuple[Path, ...] = (),
        send_cron: SendCron | None = None,
        sdk: SdkServices | None = None,
    ) -> None:
        self.store = store
        self.woken = 0
        self.cookies: dict[str, str] = {"deferred_session": Visitors(RUN_TOKEN).session}
        self.change_log = ChangeLog(None)
        self.live = LiveUpdates(store.queries.version)
        registry = QueueRegistry(queues)

        def wake() -> None:
            self.woken += 1

        self.operations = Operations(
            store,
            queues=lambda: registry,
            wake_scheduler=wake,
            about={"pid": 42, "version": "1.2.3", "data_dir": ".deferred"},
            change_log=self.change_log,
            read_only=read_only,
        )
        self.reports = Reports(
            self.operations,
            queues=lambda: registry,
            queue_yaml=queue_yaml,
            cron_directories=cron_directories,
            send_cron=send_cron,
            sdk=sdk,
        )
        tools = PageTools(operations=self.operations, live=self.live, reports=self.reports, editor=EDITORS["vscode"])
        self.site = make_site(tools, Visitors(RUN_TOKEN), form_token=FORM_TOKEN)

    def ask(
        self, method: str, path: str, fields: list[tuple[str, str]] | Mapping[str, str] | bytes = b"", **more: str
    ) -> Page:
        """Return the answer to a request."""
        path, _, query = path.partition("?")
        body = fields if isinstance(fields, bytes) else urlencode(fields, errors="surrogatepass").encode()
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path.encode().decode("latin-1"),
            "SCRIPT_NAME": "",
            "QUERY_STRING": query,
            "CONTENT_LENGTH": str(len(body)),
            "CONTENT_TYPE": "application/x-www-form-urlencoded",
            "REMOTE_ADDR": "127.0.0.1",
            "HTTP_COOKIE": "; ".join(f"{name}={value}" for name, value in self.cookies.items()),
            "wsgi.input": BytesIO(body),
            **more,
        }
        setup_testing_defaults(environ)
        started: list[Any] = []

        def start_response(*given: Any) -> Any:
            started[:] = given
            return lambda _data: None

        checked: Any = validator(self.site)
        result = checked(environ, start_response)
        data = b"".join(result)
        result.close()
        page = Page(started[0], started[1], data)
        for name, value in page.headers:
            if name == "Set-Cookie":
                key, _, content = value.partition(";")[0].partition("=")
                self.cookies[key] = content
        return page

    def get(self, path: str) -> Page:
        """Return a page that is there."""
        page = self.ask("GET", path)
        assert page.status == 200, page.text
        return page

    def post(self, path: str, **fields: str) -> Page:
        """Return the answer to a form with the right token."""
        return self.ask("POST", path, {"form_token": FORM_TOKEN, **fields})

    def press(self, page: Page, label: str, **fields: str) -> Page:
        """Press a button, with other values of fields, and return the page that it leads to."""
        button = page.button(label)
        answer = self.ask(
            "POST", button.path, [*((k, v) for k, v in button.fields if k not in fields), *fields.items()]
        )
        return self.get(answer.header("Location")) if answer.status == 303 else answer

    def add(self, *, queue: str = "default", url: str = "/_cb/deferred/mail/send", **options: Any) -> int:
        """Add a task; return its ID."""
        (added,) = self.store.add([NewTask(queue=queue, url=url, **{"eta_usec": time.time_ns() // 1000, **options})])
        assert added.outcome == "added"
        task = self.store.queries.get(queue, added.name)
        assert task is not None
        return task.id
