"""Pickles that would take much memory or time, or that would fill the log, are refused by the walk."""

from __future__ import annotations

import pickle

import pytest

from deferred_middleware.calls.allowlist import check_payload
from deferred_middleware.errors import NotAllowedError
from deferred_middleware.wire.pickle_tree import sketch

BAD = {
    "an index of the memo in four bytes": b"Nr\xff\xff\xff\x05.",
    "an index of the memo in digits": b"Np99999999\n.",
    "an index of the memo in one byte": b"Nq\xff.",
    "a negative index": b"Np-1\n.",
    "a long name": b"cmodule\n" + b"x" * 1_001 + b"\n.",
    "a long module": b"c" + b"x" * 1_001 + b"\nname\n.",
    "a long name by parts": b"\x80\x04X\x01\0\0\0mX\xe9\x03\0\0" + b"x" * 1_001 + b"\x93.",
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_out_of_bounds_is_refused(what: str) -> None:
    """The error is short, and nothing was loaded."""
    assert sketch(BAD[what]).node is None
    with pytest.raises(NotAllowedError) as caught:
        check_payload(BAD[what], ("module:name",), legacy=False)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_memo_is_within_the_bounds(protocol: int) -> None:
    """Pickle counts the entries of the memo, and so stays below the bound."""
    assert sketch(pickle.dumps([[str(i), (i,)] for i in range(500)], protocol)).problem is None


@pytest.mark.parametrize("opcode", [b"R", b"\x81"])
def test_a_maker_that_was_made_many_times_is_refused(opcode: bytes) -> None:
    """A maker is a name. The text of another maker is never made, because it may double with each opcode."""
    made = b"cos\nsystem\n" + b"2\x85" * 40 + b")" + opcode
    for data in (made + b")}\x87.", b"cos\nsystem\n" + (b")" + opcode) * 30_000 + b")}\x87."):
        with pytest.raises(NotAllowedError):
            check_payload(data, ("os:system",), legacy=False)
