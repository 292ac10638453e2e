"""What an engine can't do. The contract suite checks each entry, and the manual's table is made of them.

The engines are those of ``tests.support.engines.apps``. What is not listed here works on each of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

ENGINE_NAMES: Mapping[str, str] = {
    "stub": "The SDK's stub",
    "local": "The local server",
    "cloudtasks": "Cloud Tasks, App Engine",
    "http": "Cloud Tasks, URLs",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ability:
    """Something that not every engine can do."""

    what: str
    """It, for people."""
    cannot: Mapping[str, str]
    """The engines that can't, and what happens instead."""


_BOTH_DROP = "the header is dropped, and ``defer`` warns"
_ONE_ERROR = "both are a ``TaskAlreadyExistsError``"

ABILITIES: Mapping[str, Ability] = {
    "fail-fast": Ability(
        what="Pass on ``X-AppEngine-Fail-Fast`` in ``_headers``",
        cannot={"cloudtasks": _BOTH_DROP, "http": _BOTH_DROP},
    ),
    "tombstones": Ability(
        what="Tell a name that was used before from one that is taken",
        cannot={"cloudtasks": _ONE_ERROR, "http": _ONE_ERROR},
    ),
    "single-group": Ability(
        what="Add a small task in a transaction without ``xg=True``",
        cannot={"cloudtasks": "``CrossGroupError``; the task is an entity"},
    ),
    "db": Ability(
        what="Transactions of the SDK's ndb and db",
        cannot={"http": "transactions are those of google-cloud-ndb"},
    ),
    "sdk-calls": Ability(
        what="Delete, count and purge tasks with the SDK's ``taskqueue``",
        cannot={
            "cloudtasks": "not with an emulator; in production, the SDK calls Cloud Tasks",
            "http": "there is no SDK; use ``gcloud tasks`` or Google's client",
        },
    ),
    "yield": Ability(
        what="``yield`` an ``EnqueueFuture`` in a tasklet",
        cannot={"http": "a tasklet of google-cloud-ndb calls ``result()``"},
    ),
    "instances": Ability(
        what="A ``_target`` that names an instance",
        cannot={"http": "``TargetError``; a URL leads to no single instance"},
    ),
    "long-deadline": Ability(
        what="A ``_deadline`` of more than 30 minutes",
        cannot={"http": "``InvalidDispatchDeadlineError``"},
    ),
}
