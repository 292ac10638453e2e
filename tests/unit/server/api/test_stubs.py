"""The stubs for the SDK's services other than the task queue."""

from __future__ import annotations

import concurrent.futures
import io
import logging
import os
import sqlite3
import struct
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from google.appengine.api import (
    apiproxy_stub,
    apiproxy_stub_map,
    datastore_errors,
    full_app_id,
    images,
    mail,
    memcache,
    modules,
    search,
    urlfetch,
    users,
)
from google.appengine.api.app_identity import app_identity
from google.appengine.api.modules import modules_service_pb2
from google.appengine.datastore import datastore_pb
from google.appengine.ext import ndb
from google.protobuf.message import Message

from deferred_middleware.errors import ServerError
from deferred_middleware.server.api.datastore import DATASTORE_FILE
from deferred_middleware.server.api.rpc import message_types
from deferred_middleware.server.api.stubs import make_stub_map
from deferred_middleware.server.config.services import Service, ServiceDirectory

APP_ID = "dev~local-app"


class FakeTaskQueue(apiproxy_stub.APIProxyStub):  # type: ignore[misc] # the SDK has no types
    """Records the tasks that committed transactions add."""

    def __init__(self) -> None:
        super().__init__("taskqueue")
        self.held: dict[str, list[Any]] = {}
        self.added: list[Any] = []
        self.transactions = self

    def stage(self, adds: Sequence[Any], transaction: str) -> None:
        """Hold the tasks of a transaction."""
        self.held[transaction] = list(adds)

    def discard(self, transaction: str) -> None:
        """Drop the tasks of a transaction."""
        del self.held[transaction]

    def commit(self, transactions: Collection[str]) -> None:
        """Add the tasks of these transactions."""
        for transaction in transactions:
            self.added += self.held.pop(transaction)

    def recover(self, committed: Collection[str]) -> None:
        """Do nothing: held tasks don't outlive the process."""


class Note(ndb.Model):  # type: ignore[misc] # the SDK has no types
    """An entity."""

    text = ndb.StringProperty()
    data = ndb.BlobProperty()


DEFAULT = Service(name="default", version="local", host="127.0.0.1", port=8080, concurrency=6)
BACKGROUND = Service(name="background", version="local", host="127.0.0.1", port=8081, concurrency=6)

Make = Callable[[], Any]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Return a function that makes the stubs on the same data directory each time, as a server start does."""
    monkeypatch.setattr(apiproxy_stub_map, "apiproxy", None)
    for variable in ("APPLICATION_ID", "GAE_APPLICATION", "AUTH_DOMAIN"):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)

    made: list[Any] = []

    def make_stubs() -> Any:
        stub_map = make_stub_map(
            app_id=APP_ID,
            data_dir=tmp_path,
            directory=ServiceDirectory([DEFAULT, BACKGROUND]),
            taskqueue_stub=FakeTaskQueue(),
            callers={"background's ticket": BACKGROUND},
        )
        made.append(stub_map)
        return stub_map

    yield make_stubs
    for stub_map in made:
        stub_map.GetStub("datastore_v3")._file.close()
    full_app_id.clear()


@pytest.fixture
def stubs(make: Make) -> Any:
    """The stubs, installed in this process."""
    return make()


def in_context(function: Callable[[], Any]) -> Any:
    """Call ``function`` without ndb's caches, so that it reads the datastore."""
    context = ndb.get_context()
    context.set_cache_policy(False)
    context.set_memcache_policy(False)
    return function()


def test_every_method_of_every_stub_has_its_messages(stubs: Any) -> None:
    """Every method of every stub can be called over HTTP, except those that only configure a stub in tests."""
    steering = {"SetClock", "AdvanceClock", "SetMaxSize", "GetLruChainLength", "SetHttpProxy", "SetOAuthUser"}
    steering |= {"SetDefaultGcsBucketName", "SetCapabilityStatus"}
    steering |= {f"{verb}{what}" for verb in ("Get", "Set") for what in ("LogMailBody", "LogMailLevel")}
    steering |= {"GetSentMessages", "ClearSentMessages"}
    names = ["datastore_v3", "memcache", "modules", "app_identity_service", "urlfetch", "user", "capability_service"]
    for name in [*names, "mail", "images", "search"]:
        for attribute in dir(stubs.GetStub(name)):
            method = attribute.removeprefix("_Dynamic_")
            if method != attribute and method not in steering:
                assert all(issubclass(kind, Message) for kind in message_types(name, method))


def test_images_are_transformed(stubs: Any) -> None:
    """The images service resizes and flips the bytes that it gets."""
    data = io.BytesIO()
    halves = PIL.Image.new("RGB", (40, 20), "black")
    halves.paste("white", (0, 0, 40, 10))
    halves.save(data, "PNG")
    image = images.Image(data.getvalue())
    image.resize(width=20)
    image.vertical_flip()
    made = PIL.Image.open(io.BytesIO(image.execute_transforms(images.PNG)))
    assert made.size == (20, 10)
    assert (made.getpixel((10, 0)), made.getpixel((10, 9))) == ((0, 0, 0), (255, 255, 255))


def test_documents_are_found(stubs: Any) -> None:
    """The search service finds documents, and no longer those that were deleted."""
    index = search.Index("books")
    index.put(search.Document("1", fields=[search.TextField("title", "a long walk")]))
    index.put(search.Document("2", fields=[search.TextField("title", "a short walk")]))
    assert [found.doc_id for found in index.search("title:long")] == ["1"]
    index.delete("1")
    assert [found.doc_id for found in index.search("walk")] == ["2"]


def test_an_unknown_method_is_a_key_error() -> None:
    """An unknown method raises KeyError, which the caller handles."""
    with pytest.raises(KeyError):
        message_types("taskqueue", "NoSuchMethod")


def test_a_transactional_add_has_the_task_queues_messages() -> None:
    """AddActions uses the bulk add's messages, despite its name."""
    request, response = message_types("datastore_v3", "AddActions")
    assert (request.__name__, response.__name__) == ("TaskQueueBulkAddRequest", "TaskQueueBulkAddResponse")


def test_entities_survive_a_restart(make: Make) -> None:
    """Entities survive a restart on the same data directory, even if the server was not closed."""
    make()
    key = in_context(lambda: Note(text="kept", data=bytes(range(256))).put())
    make()
    note = in_context(key.get)
    assert (note.text, note.data) == ("kept", bytes(range(256)))


def test_deleted_entities_stay_deleted(make: Make) -> None:
    """A deleted entity is still deleted after a restart."""
    make()
    key = in_context(lambda: Note(text="gone").put())
    in_context(key.delete)
    make()
    assert in_context(key.get) is None


def test_queries_see_what_was_committed(stubs: Any) -> None:
    """Queries are consistent, as in Firestore's Datastore mode."""
    for number in range(20):
        in_context(Note(text=str(number)).put)
        assert in_context(Note.query().count) == number + 1


def test_a_transaction_that_commits_adds_its_tasks(stubs: Any) -> None:
    """When a transaction commits, its tasks are added to the task queue."""
    _run_transaction_with_task(fail=False)
    assert [request.url for request in stubs.GetStub("taskqueue").added] == [b"/work"]


def test_a_transaction_that_is_rolled_back_adds_nothing(stubs: Any) -> None:
    """When a transaction fails, none of its tasks is added."""
    with pytest.raises(ZeroDivisionError):
        _run_transaction_with_task(fail=True)
    assert stubs.GetStub("taskqueue").added == []


def _run_transaction_with_task(*, fail: bool) -> None:
    request_type, response_type = message_types("datastore_v3", "AddActions")

    def work() -> None:
        Note(text="in transaction").put()
        request = request_type()
        task: Any = request.add_request.add()  # type: ignore[attr-defined]
        task.queue_name, task.task_name, task.url, task.eta_usec = b"default", b"", b"/work", 0
        task.transaction.CopyFrom(_current_transaction())
        apiproxy_stub_map.MakeSyncCall("datastore_v3", "AddActions", request, response_type())
        if fail:
            raise ZeroDivisionError

    in_context(lambda: ndb.transaction(work, retries=0))


def _current_transaction() -> Any:
    return ndb.get_context()._conn.transaction


def test_threads_can_put_at_once(stubs: Any, make: Make) -> None:
    """When many threads put at the same time, every entity is saved."""

    def put(number: int) -> None:
        in_context(Note(id=number + 1, text=str(number)).put)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(put, range(80)))
    make()
    assert in_context(Note.query().count) == 80


def test_commits_that_wait_share_a_write(stubs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits that arrive while the file is being written share one further write."""
    datastore = stubs.GetStub("datastore_v3")
    write_file = datastore._write_file
    writes: list[int] = []
    began, may_end = threading.Event(), threading.Event()

    def slow_write(changed: dict[bytes, bytes], *rest: Any) -> None:
        writes.append(len(changed))
        began.set()
        assert may_end.wait(20)
        write_file(changed, *rest)

    monkeypatch.setattr(datastore, "_write_file", slow_write)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        first = pool.submit(in_context, Note(id=100).put)
        assert began.wait(20)
        others = [pool.submit(in_context, Note(id=number).put) for number in range(1, 8)]
        while datastore._changes < 8:
            os.sched_yield()
        may_end.set()
        for future in [first, *others]:
            future.result(20)
    assert writes == [1, 7]


def test_a_call_returns_only_when_its_change_is_written(stubs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the file can't be written, the put fails."""
    datastore = stubs.GetStub("datastore_v3")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(datastore, "_write_file", fail)
        with pytest.raises(datastore_errors.InternalError, match="No space left"):
            in_context(Note(text="lost?").put)
    in_context(Note(text="later").put)


def test_close_writes_what_is_left(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing the datastore writes what could not be written before."""

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    datastore = make().GetStub("datastore_v3")
    with monkeypatch.context() as patch:
        patch.setattr(datastore, "_write_file", fail)
        with pytest.raises(datastore_errors.InternalError, match="disk I/O error"):
            in_context(Note(id=7, text="kept").put)
    datastore.close()
    make()
    assert in_context(lambda: Note.get_by_id(7)).text == "kept"


def test_a_put_writes_what_it_changes(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit writes the entities that it has put or deleted, however many others there are."""
    datastore = make().GetStub("datastore_v3")
    in_context(lambda: ndb.put_multi([Note(id=number) for number in range(1, 500)]))
    written: list[int] = []
    write_file = datastore._write_file

    def count(changed: dict[bytes, bytes], *rest: Any) -> None:
        written.append(len(changed))
        write_file(changed, *rest)

    monkeypatch.setattr(datastore, "_write_file", count)
    in_context(Note(id=1000).put)
    in_context(ndb.Key(Note, 3).delete)
    in_context(lambda: ndb.put_multi([Note(id=1), Note(id=2)]))
    assert written == [1, 1, 2]
    make()
    assert in_context(Note.query().count) == 499
    assert in_context(lambda: Note.get_by_id(3)) is None


@pytest.mark.parametrize("version", [1, 2])
def test_entities_of_the_file_of_earlier_versions_are_read_once(make: Make, tmp_path: Path, version: int) -> None:
    """The file that was written anew at each commit is read into the new one, and then only kept."""
    make()
    key = in_context(Note(text="kept").put)
    with sqlite3.connect(tmp_path / DATASTORE_FILE) as connection:
        entities = [entity for (entity,) in connection.execute("SELECT entity FROM entities")]
        (time,) = connection.execute("SELECT time FROM commit_time").fetchone()
    connection.close()
    for path in tmp_path.glob(f"{DATASTORE_FILE}*"):
        path.unlink()
    old = b"deferred_middleware datastore %d\n" % version + struct.pack(">QQ", time, len(entities))
    if version == 2:
        old += struct.pack(">I", 1) + bytes(16)  # a transaction whose tasks may be staged
    (tmp_path / "datastore.bin").write_bytes(old + b"".join(struct.pack(">I", len(e)) + e for e in entities))
    make()
    assert in_context(key.get).text == "kept"
    assert not (tmp_path / "datastore.bin").exists()
    assert (tmp_path / "datastore.bin.read").exists()
    in_context(key.delete)
    make()
    assert in_context(key.get) is None


@pytest.mark.parametrize(
    "content",
    [
        b"something else",
        b"",
        b"deferred_middleware datastore 1\n",
        b"deferred_middleware datastore 1\n" + struct.pack(">QQI", 1, 1, 9) + b"no entity",
        b"deferred_middleware datastore 1\n" + struct.pack(">QQI", 1, 1, 9) + b"cut",
    ],
)
def test_a_damaged_datastore_file_is_told(make: Make, tmp_path: Path, content: bytes) -> None:
    """If the datastore file is damaged or empty, starting fails with an error that names the file."""
    (tmp_path / "datastore.bin").write_bytes(content)
    with pytest.raises(ServerError, match="datastore"):
        make()
    assert not (tmp_path / DATASTORE_FILE).exists()
    (tmp_path / DATASTORE_FILE).write_bytes(content)
    with pytest.raises(ServerError, match=DATASTORE_FILE):
        make()
    if content:
        assert (tmp_path / DATASTORE_FILE).read_bytes() == content


def test_a_cut_datastore_file_is_told(make: Make, tmp_path: Path) -> None:
    """If pages are missing, starting fails with an error that names the file."""
    stub_map = make()
    in_context(lambda: ndb.put_multi([Note(text="x" * 500) for _ in range(200)]))
    stub_map.GetStub("datastore_v3").close()
    path = tmp_path / DATASTORE_FILE
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ServerError, match=DATASTORE_FILE):
        make()


def test_memcache_is_shared(stubs: Any) -> None:
    """The memcache API returns the values that were set."""
    memcache.set("color", "blue")
    assert memcache.get("color") == "blue"
    assert memcache.incr("count", initial_value=4) == 5


def test_modules_are_the_services(stubs: Any) -> None:
    """The modules API returns the served services and their addresses."""
    assert list(modules.get_modules()) == ["background", "default"]
    assert list(modules.get_versions("background")) == ["local"]
    assert modules.get_default_version("default") == "local"
    assert modules.get_hostname("background") == "127.0.0.1:8081"
    assert modules.get_hostname("default") == "localhost:8080"


def test_an_unknown_module_is_the_sdks_error(stubs: Any) -> None:
    """Asking for an unknown service raises the same error as on App Engine."""
    with pytest.raises(modules.InvalidModuleError):
        modules.get_hostname("nowhere")


def test_a_caller_is_told_by_its_ticket(stubs: Any) -> None:
    """If the request names no module, the response is about the caller's service, known by its ticket."""
    request, response = modules_service_pb2.GetHostnameRequest(), modules_service_pb2.GetHostnameResponse()
    stubs.GetStub("modules").MakeSyncCall("modules", "GetHostname", request, response, "background's ticket")
    assert response.hostname == "127.0.0.1:8081"


def test_app_identity_knows_the_app(stubs: Any) -> None:
    """The app identity API returns a service account name and the app's ID."""
    assert app_identity.get_service_account_name()
    assert app_identity.get_application_id() == "local-app"


def test_mail_goes_to_the_log(stubs: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Mail is logged instead of sent."""
    with caplog.at_level(logging.INFO):
        mail.send_mail("from@example.com", "to@example.com", "Hello", "Body")
    assert "to@example.com" in caplog.text


def test_login_urls_can_be_made(stubs: Any) -> None:
    """The users API returns login URLs."""
    assert users.create_login_url("/here")


def test_urlfetch_refuses_what_is_no_url(stubs: Any) -> None:
    """URL fetch rejects an invalid URL."""
    with pytest.raises(urlfetch.InvalidURLError):
        urlfetch.fetch("nowhere://at-all")


def test_starting_says_nothing(
    make: Make, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first start logs and prints nothing about files that don't exist yet."""
    make()
    assert caplog.text == ""
    assert capsys.readouterr() == ("", "")


def test_the_file_is_private(stubs: Any, tmp_path: Path) -> None:
    """Only the user who runs the server can read the datastore file."""
    in_context(Note(text="secret").put)
    assert (tmp_path / DATASTORE_FILE).stat().st_mode & 0o777 == 0o600


def test_the_queries_messages_are_the_datastores() -> None:
    """RunQuery and Next both return a QueryResult."""
    assert message_types("datastore_v3", "RunQuery") == (datastore_pb.Query, datastore_pb.QueryResult)
    assert message_types("datastore_v3", "Next")[1] is datastore_pb.QueryResult
