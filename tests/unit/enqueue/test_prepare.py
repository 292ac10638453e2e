"""Tests of the queue, target and URL of a call."""

from __future__ import annotations

import collections
import copy
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deferred_middleware import OptionError, Settings, call
from deferred_middleware.config.process import Deployment
from deferred_middleware.enqueue.prepare import RandomDigits, queue_for, target_for, url_for
from tests.support import sample

DEFAULT = Deployment(service="default", version="v1")


def test_without_anything_the_default_queue_is_used() -> None:
    """Without settings and options, the queue is ``default``."""
    assert queue_for(call(sample.note), Settings()) == "default"


def test_a_single_queue_given_is_the_queue() -> None:
    """A single queue name is the queue, and the default queues are not used."""
    settings = Settings(default_queues=("a", "b"))

    assert queue_for(call(sample.note, _queue="quick"), settings) == "quick"
    assert queue_for(call(sample.note, _queue=["slow"]), settings) == "slow"


def test_unnamed_calls_are_spread_evenly() -> None:
    """Unnamed calls are spread evenly over the queues."""
    queues = ("a", "b", "c")
    counts = collections.Counter(queue_for(call(sample.note, _queue=queues), Settings()) for _ in range(3000))

    # Each count is binomial with mean 1000 and standard deviation 26. A deviation of seven times that doesn't occur by
    # chance.
    assert set(counts) == set(queues)
    assert all(800 < count < 1200 for count in counts.values())


@given(name=st.from_regex(r"[a-zA-Z0-9_-]{1,40}", fullmatch=True), order=st.permutations(["a", "b", "c", "d"]))
def test_a_named_call_always_goes_to_the_same_queue(name: str, order: list[str]) -> None:
    """A name always selects the same queue, in every process and for every order of the list."""
    chosen = queue_for(call(sample.note, _name=name, _queue=order), Settings())

    assert chosen == queue_for(call(sample.note, _name=name), Settings(default_queues=("a", "b", "c", "d")))


def test_names_are_spread_over_the_queues() -> None:
    """Names are spread over all queues, and a name selects the same queue in every version of the library."""
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
        (DEFAULT, "background", "worker", "worker"),
        (DEFAULT, "background", "default", "default"),
        (DEFAULT, "background", "v9.worker", "v9.worker"),
        (DEFAULT, None, "0.v9.worker", "0.v9.worker"),
        (Deployment(), "background", None, None),
        (Deployment(service="default"), "background", None, None),
        (Deployment(version="v1"), None, None, None),
        (Deployment(), None, "v9.worker", "v9.worker"),
        (Deployment(), "background", "worker", "worker"),
    ],
)
def test_the_target_is_version_and_service(
    deployment: Deployment, background: str | None, given: str | None, target: str | None
) -> None:
    """The default service targets the background module, another service itself; a given target is used as it is."""
    made = call(sample.note, _target=given)

    assert target_for(made, Settings(background_module=background), deployment) == target


@pytest.mark.parametrize(
    ("version", "deployment", "given", "target"),
    [
        ("same", DEFAULT, None, "v1.background"),
        ("same", Deployment(service="default"), None, None),
        ("default", DEFAULT, None, "background"),
        ("default", Deployment(service="default"), None, "background"),
        ("v7", DEFAULT, None, "v7.background"),
        ("v7", Deployment(service="default"), None, "v7.background"),
        ("v7", Deployment(service="api", version="v2"), None, "v2.api"),
        ("default", Deployment(service="background", version="v2"), None, "v2.background"),
        ("v7", DEFAULT, "worker", "worker"),
        ("default", Deployment(), None, None),
    ],
)
def test_the_version_of_the_background_module_can_be_set(
    version: str, deployment: Deployment, given: str | None, target: str | None
) -> None:
    """The setting concerns only what goes from the default service to the background module."""
    settings = Settings(background_module="background", background_version=version)

    assert target_for(call(sample.note, _target=given), settings, deployment) == target


def test_the_url_names_the_call() -> None:
    """The URL is the prefix with module and qualname."""
    assert url_for(call(sample.Mailer().send, "bob"), Settings()) == "/_cb/deferred/tests.support.sample/Mailer.send"
    assert url_for(call(sample.note), Settings(url_prefix="/t")) == "/t/tests.support.sample/note"


def test_a_url_of_ones_own_is_kept() -> None:
    """A URL outside the prefix belongs to another handler and is used as given."""
    assert url_for(call(sample.note, _url="/_ah/queue/deferred"), Settings()) == "/_ah/queue/deferred"
    assert url_for(call(sample.note, _url="/_cb/deferred2/x"), Settings()) == "/_cb/deferred2/x"


@pytest.mark.parametrize("url", ["/_cb/deferred", "/_cb/deferred/", "/_cb/deferred/tests.support.sample/other"])
def test_a_url_under_the_prefix_must_not_lie(url: str) -> None:
    """A given URL under the prefix is rejected, because such URLs name their call."""
    with pytest.raises(OptionError, match="a URL names the call it runs"):
        url_for(call(sample.note, _url=url), Settings())


def test_random_digits_never_repeat() -> None:
    """Digits for many calls are 32 hexadecimal ones, and no two calls have the same."""
    digits = RandomDigits()
    taken = [digits() for _ in range(1000)]
    assert len(set(taken)) == 1000
    assert all(re.fullmatch("[0-9a-f]{32}", some) for some in taken)


def test_a_forked_process_has_digits_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is forked while many calls are prepared doesn't use the digits that its parent goes on with."""
    digits = RandomDigits()
    digits()
    of_child = copy.copy(digits)
    of_parent = {digits() for _ in range(200)}
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert of_parent.isdisjoint({of_child() for _ in range(200)})
