"""Tests of a task's URL, queue and target."""

from __future__ import annotations

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deferred_middleware import OptionError, Settings, call
from deferred_middleware.config.settings import Deployment
from deferred_middleware.enqueue.routing import queue_for, target_for, url_for
from tests.support import sample

DEFAULT = Deployment(service="default", version="v1")


def test_without_anything_the_default_queue_is_used() -> None:
    """A call goes to the queue named default."""
    assert queue_for(call(sample.note), Settings()) == "default"


def test_a_single_queue_given_is_the_queue() -> None:
    """A queue's name that is no list is that queue, not the default ones."""
    settings = Settings(default_queues=("a", "b"))

    assert queue_for(call(sample.note, _queue="quick"), settings) == "quick"
    assert queue_for(call(sample.note, _queue=["slow"]), settings) == "slow"


def test_unnamed_calls_are_spread_evenly() -> None:
    """Each of the queues gets its share of unnamed calls."""
    queues = ("a", "b", "c")
    counts = collections.Counter(queue_for(call(sample.note, _queue=queues), Settings()) for _ in range(3000))

    # Each count is binomial with mean 1000 and standard deviation 26: seven of those is never met by chance.
    assert set(counts) == set(queues)
    assert all(800 < count < 1200 for count in counts.values())


@given(name=st.from_regex(r"[a-zA-Z0-9_-]{1,40}", fullmatch=True), order=st.permutations(["a", "b", "c", "d"]))
def test_a_named_call_always_goes_to_the_same_queue(name: str, order: list[str]) -> None:
    """A name decides the queue, in every process and whatever the order of the list, for names are unique per queue."""
    chosen = queue_for(call(sample.note, _name=name, _queue=order), Settings())

    assert chosen == queue_for(call(sample.note, _name=name), Settings(default_queues=("a", "b", "c", "d")))


def test_names_are_spread_over_the_queues() -> None:
    """Different names use all queues, and the choice is the same in every version of the library."""
    settings = Settings(default_queues=("a", "b"))
    queues = {name: queue_for(call(sample.note, _name=name), settings) for name in ("n0", "n1", "n2", "n3")}

    assert queues == {"n0": "a", "n1": "b", "n2": "b", "n3": "a"}


@pytest.mark.parametrize(
    ("deployment", "background", "given", "target"),
    [
        (DEFAULT, None, None, "v1.default"),
        (DEFAULT, "background", None, "v1.background"),
        (Deployment(service="api", version="v2"), "background", None, "v2.api"),
        (Deployment(service="background", version="v2"), "background", None, "v2.background"),
        (DEFAULT, "background", "worker", "v1.worker"),
        (DEFAULT, "background", "default", "v1.default"),
        (DEFAULT, "background", "v9.worker", "v9.worker"),
        (DEFAULT, None, "0.v9.worker", "0.v9.worker"),
        (Deployment(), "background", None, None),
        (Deployment(service="default"), "background", None, None),
        (Deployment(version="v1"), None, None, None),
        (Deployment(), None, "v9.worker", "v9.worker"),
    ],
)
def test_the_target_is_version_and_service(
    deployment: Deployment, background: str | None, given: str | None, target: str | None
) -> None:
    """Tasks of the default service go to the background module, others stay; both labels are always sent."""
    made = call(sample.note, _target=given)

    assert target_for(made, Settings(background_module=background), deployment) == target


def test_a_service_alone_needs_a_version() -> None:
    """Where the process's version is not known, a target of one label can't be completed."""
    with pytest.raises(OptionError, match=r"GAE_VERSION is not set; write <version>\.<service>"):
        target_for(call(sample.note, _target="worker"), Settings(), Deployment())


def test_the_url_names_the_call() -> None:
    """The URL is the prefix with module and qualname."""
    assert url_for(call(sample.Mailer().send, "bob"), Settings()) == "/_cb/deferred/tests.support.sample/Mailer.send"
    assert url_for(call(sample.note), Settings(url_prefix="/t")) == "/t/tests.support.sample/note"


def test_a_url_of_ones_own_is_kept() -> None:
    """A path outside the prefix is somebody else's handler, and used as given."""
    assert url_for(call(sample.note, _url="/_ah/queue/deferred"), Settings()) == "/_ah/queue/deferred"
    assert url_for(call(sample.note, _url="/_cb/deferred2/x"), Settings()) == "/_cb/deferred2/x"


@pytest.mark.parametrize("url", ["/_cb/deferred", "/_cb/deferred/", "/_cb/deferred/tests.support.sample/other"])
def test_a_url_under_the_prefix_must_not_lie(url: str) -> None:
    """Under the prefix a URL names its call, so that one given by hand is refused."""
    with pytest.raises(OptionError, match="a URL names the call it runs"):
        url_for(call(sample.note, _url=url), Settings())
