"""Callables of every kind, with their labels."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from tests.support import sample

SECRET, SECRET_STATIC, SECRET_BUILD = sample.Mailer("ann").secrets()

KINDS: list[tuple[Callable[..., Any], str]] = [
    (sample.note, "tests.support.sample/note"),
    (sample.coroutine, "tests.support.sample/coroutine"),
    (sample.decorated, "tests.support.sample/decorated"),
    (functools.partial(sample.note, 1), "tests.support.sample/note"),
    (functools.partial(functools.partial(sample.Mailer("ann").send), "bob"), "tests.support.sample/Mailer.send"),
    (sample.Mailer("ann").send, "tests.support.sample/Mailer.send"),
    (sample.Mailer("ann").wrapped, "tests.support.sample/Mailer.wrapped"),
    (SECRET, "tests.support.sample/Mailer.__secret"),
    (functools.partial(SECRET, "bob"), "tests.support.sample/Mailer.__secret"),
    (sample.Mailer.static, "tests.support.sample/Mailer.static"),
    (SECRET_STATIC, "tests.support.sample/Mailer.__secret_static"),
    (sample.Mailer.build, "tests.support.sample/Mailer.build"),
    (SECRET_BUILD, "tests.support.sample/Mailer.__secret_build"),
    (sample.Caller("ann"), "tests.support.sample/Caller"),
    (sample.Noting, "tests.support.sample/Noting"),
    (print, "builtins/print"),
    (os.getpid, "posix/getpid"),
    ([].append, "builtins/list.append"),
    ("-".join, "builtins/str.join"),
    (dict.fromkeys, "builtins/dict.fromkeys"),
]
