"""The API over REST, as a WSGI app."""

from __future__ import annotations

import io
import json
import urllib.parse
from typing import Any
from wsgiref.validate import validator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deferred_middleware.server.cloud_tasks.rest import RestApi
from deferred_middleware.server.store.store import TaskStore
from tests.support.cloud_api import PARENT, QUEUE, Api
from tests.support.storing import Clock


class Client:
    """Makes requests of the app; ``log`` has the warnings and errors of the server."""

    def __init__(self, app: RestApi) -> None:
        self._app = app

    def request(self, verb: str, path: str, body: bytes | None = None, **environ: str) -> tuple[int, Any]:
        """Return the status and the JSON of the response."""
        url, _, query = path.partition("?")
        given = {
            "REQUEST_METHOD": verb,
            "SCRIPT_NAME": "",
            "PATH_INFO": urllib.parse.unquote(url, "latin-1"),
            "QUERY_STRING": query,
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "8123",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "HTTP_HOST": "localhost:8123",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(body or b""),
            "wsgi.errors": io.StringIO(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            **environ,
        }
        if body is not None:
            given["CONTENT_LENGTH"] = str(len(body))
        given = {name: value for name, value in given.items() if value != ""} | {
            "SCRIPT_NAME": "",
            "QUERY_STRING": query,
        }
        started: list[str] = []

        def start(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> Any:
            started.append(status)
            return lambda data: None

        found = validator(self._app)(given, start)
        try:
            content = b"".join(found)
        finally:
            found.close()  # type: ignore[attr-defined] # the validator's
        return int(started[0][:3]), json.loads(content) if content else None

    def json(self, verb: str, path: str, content: object = None) -> tuple[int, Any]:
        """Send JSON."""
        return self.request(verb, path, None if content is None else json.dumps(content).encode())


@pytest.fixture
def client(store: TaskStore, clock: Clock) -> Client:
    """Return a client of an API with one queue."""
    api = Api(store, clock)
    api.make_queue()
    return Client(RestApi(api.methods, hosts=["tasks.example.com"]))


def test_a_task_by_rest(client: Client) -> None:
    """The request is the body, its parent the URL, and the response JSON."""
    body = {"task": {"httpRequest": {"url": "http://localhost", "body": "aGVsbG8="}}, "responseView": "FULL"}
    status, task = client.json("POST", f"/v2/{QUEUE}/tasks", body)
    assert status == 200
    assert (task["httpRequest"]["body"], task["httpRequest"]["httpMethod"], task["view"]) == (
        "aGVsbG8=",
        "POST",
        "FULL",
    )
    status, found = client.json("GET", f"/v2/{task['name']}?responseView=FULL")
    assert (status, found) == (200, task)
    status, found = client.json("GET", f"/v2/{task['name']}?responseView=2&$alt=json;enum-encoding=int")
    assert (status, found["view"], found["httpRequest"]["httpMethod"]) == (200, 2, 1)
    assert client.json("DELETE", f"/v2/{task['name']}") == (200, {})
    status, error = client.json("GET", f"/v2/{task['name']}")
    assert (status, error["error"]["code"], error["error"]["status"]) == (404, 404, "NOT_FOUND")


def test_an_error_has_the_form_of_the_service(client: Client) -> None:
    """The error has the code, the status's name, the message, and a link for people."""
    status, error = client.json(
        "POST", f"/v2/{QUEUE}/tasks", {"task": {"name": f"{QUEUE}/tasks/a b", "httpRequest": {"url": "http://a"}}}
    )
    assert status == 400
    assert error["error"]["status"] == "INVALID_ARGUMENT"
    assert error["error"]["details"][0]["@type"] == "type.googleapis.com/google.rpc.Help"


def test_a_name_may_be_encoded(client: Client) -> None:
    """A client may percent-encode the parts of a name."""
    encoded = urllib.parse.quote(QUEUE, safe="")
    assert client.json("GET", f"/v2/{encoded}")[0] == 200


@pytest.mark.parametrize("spelling", ["rateLimits.maxDispatchesPerSecond", "rate_limits.max_dispatches_per_second"])
def test_an_update_mask_in_either_spelling(client: Client, spelling: str) -> None:
    """PATCH has the queue as its body and the mask in the URL."""
    body = {"rateLimits": {"maxDispatchesPerSecond": 7, "maxConcurrentDispatches": 3}}
    status, queue = client.json("PATCH", f"/v2/{QUEUE}?updateMask={spelling}", body)
    assert status == 200
    assert queue["rateLimits"]["maxDispatchesPerSecond"] == 7
    assert queue["rateLimits"]["maxConcurrentDispatches"] == 1000


@pytest.mark.parametrize(
    ("verb", "path", "code"),
    [
        ("POST", f"{QUEUE}:setIamPolicy", 501),
        ("POST", f"{QUEUE}:getIamPolicy", 501),
        ("POST", f"{QUEUE}:testIamPermissions", 501),
        ("GET", f"{PARENT}/cmekConfig", 501),
        ("PATCH", f"{PARENT}/cmekConfig", 501),
        ("GET", f"{PARENT}/queues?filter=state:PAUSED", 501),
        ("GET", PARENT, 200),
        ("GET", "projects/my-project/locations", 200),
        ("GET", f"{PARENT}/operations/unknown", 404),
        ("POST", f"{QUEUE}:pause", 200),
        ("POST", f"{QUEUE}:resume", 200),
        ("POST", f"{QUEUE}:purge", 200),
        ("PUT", QUEUE, 404),
        ("GET", "", 404),
        ("GET", f"{QUEUE}/", 404),
        ("GET", f"{QUEUE}/tasks?pageSize=-1", 400),
        ("GET", f"{QUEUE}/tasks?pageSize=x", 400),
        ("GET", f"{QUEUE}/tasks?pageToken=%FF", 400),
        ("GET", f"{QUEUE}/tasks?unknown=1", 400),
        ("GET", f"{QUEUE}/tasks?parent=projects/x", 400),
        ("GET", f"{QUEUE}/tasks?responseView=SOME", 400),
        ("GET", f"{QUEUE}/tasks?key=abc&prettyPrint=false", 200),
        ("GET", "projects/p/locations/%ff/queues", 404),
        ("DELETE", f"{PARENT}/queues/nowhere", 404),
    ],
)
def test_urls(client: Client, verb: str, path: str, code: int) -> None:
    """Each method has its URL, and everything else is an error."""
    body: dict[str, Any] | None = {} if verb in ("POST", "PATCH") else None
    status, content = client.json(verb, f"/v2/{path}", body)
    assert status == code, content
    assert ("error" in content) == (code != 200)


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b'{"task": 5}', b'{"task": {"unknown": 1}}', b'{"unknown": {}}',
        b'{"task": {"httpRequest": {"url": 5}}}', b'{"task": {"httpRequest": {"body": "!!"}}}',
        b'{"task": {"scheduleTime": "tomorrow"}}', b'{"task": {"dispatchDeadline": "soon"}}',
        b'{"task": {"httpRequest": {"httpMethod": "FLY"}}}', b'{"task": {"httpRequest": {"headers": [1]}}}',
        b'{"responseView": 7e400}', b"[" * 100_000, b'{"task":' * 5_000 + b"{}" + b"}" * 5_000,
        b'{"task": {"httpRequest": {}, "appEngineHttpRequest": {}}}', b'{"task": {"view": 99}}',
    ],
    ids=lambda body: body[:40].decode("latin-1"),
)  # fmt: skip
def test_a_body_that_is_malformed(client: Client, body: bytes) -> None:
    """The answer is INVALID_ARGUMENT, whatever the body is."""
    status, content = client.request("POST", f"/v2/{QUEUE}/tasks", body)
    assert (status, content["error"]["status"]) == (400, "INVALID_ARGUMENT")


@pytest.mark.parametrize(
    "environ",
    [
        {"HTTP_ORIGIN": "http://localhost:8123"},
        {"HTTP_SEC_FETCH_SITE": "none"},
        {"HTTP_SEC_FETCH_MODE": "navigate"},
        {"HTTP_HOST": "attacker.example.com"},
        {"HTTP_HOST": "localhost.attacker.com:8123"},
        {"HTTP_HOST": "a b"},
        {"HTTP_HOST": ""},
    ],
)
def test_pages_of_browsers_are_refused(client: Client, environ: dict[str, str]) -> None:
    """No page of any site can read or create tasks, also not by a name that leads here."""
    status, content = client.request("GET", f"/v2/{QUEUE}/tasks", None, **environ)
    assert (status, content["error"]["status"]) == (403, "PERMISSION_DENIED")


@pytest.mark.parametrize("host", ["emulator:8123", "127.0.0.1", "[::1]:8123", "10.0.0.7:80", "tasks.example.com"])
def test_hosts_of_ones_own(client: Client, host: str) -> None:
    """Addresses, names without a dot, and names that were allowed are legal."""
    assert client.request("GET", f"/v2/{QUEUE}", HTTP_HOST=host)[0] == 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    ["task", "name", "httpRequest", "url", "headers", "body", "oidcToken", "serviceAccountEmail", "scheduleTime",
     "dispatchDeadline", "retryConfig", "maxAttempts", "minBackoff", "appEngineHttpRequest", "relativeUri",
     "appEngineRouting", "service", "responseView", "view", "createTime", "lastAttempt", "queue", "rateLimits",
     "requests", "names", "parent", "requestId", "updateMask", "httpTarget", "uriOverride", "port"]
)  # fmt: skip
LEAVES = st.sampled_from(
    ["POST", "1s", "-1s", "2030-01-01T00:00:00Z", "http://localhost", QUEUE, f"{QUEUE}/tasks/a", "/"]
)
SHAPED = st.recursive(
    JSON | LEAVES,
    lambda inner: st.dictionaries(FIELDS, inner, max_size=5) | st.lists(inner, max_size=3),
    max_leaves=20,
)


@settings(max_examples=150)
@given(content=SHAPED, suffix=st.sampled_from(["/tasks", "/tasks:batchCreate", "/tasks:batchDelete", ":pause", ":x"]))
def test_any_json_has_an_answer(store_api: Client, content: object, suffix: str) -> None:
    """Whatever a client sends, the answer is a result or an error of the client's, never a defect."""
    status, answer = store_api.json("POST", f"/v2/{QUEUE}{suffix}", content)
    assert status in (200, 400, 404, 409), answer


@settings(max_examples=100)
@given(
    verb=st.sampled_from(["GET", "POST", "PATCH", "DELETE", "HEAD", "OPTIONS"]),
    path=st.text(max_size=30),
    query=st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), max_size=30),
    body=st.binary(max_size=60),
)
def test_any_request_has_an_answer(store_api: Client, verb: str, path: str, query: str, body: bytes) -> None:
    """Any URL and any bytes have an answer."""
    url = urllib.parse.quote(f"/v2/projects/p/{path}", safe="/:")
    status, _answer = store_api.request(verb, f"{url}?{query}", body)
    assert status in (200, 400, 404, 409, 501)


@pytest.fixture(scope="module")
def store_api(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a client of an API that is shared by many examples."""
    store = TaskStore(tmp_path_factory.mktemp("store") / "tasks.sqlite")
    api = Api(store, Clock())
    api.make_queue()
    yield Client(RestApi(api.methods))
    store.close()
