"""Where a call goes: which queue, which target, which URL."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

from deferred_middleware.errors import OptionError

if TYPE_CHECKING:
    from deferred_middleware.calls.call import Call
    from deferred_middleware.config.process import Deployment
    from deferred_middleware.config.settings import Settings


class TargetAsGiven(str):
    """A target that is sent as it is, by the drop-in for the SDK's module where the version isn't known."""

    __slots__ = ()


def queue_for(call: Call, settings: Settings) -> str:
    """Return the queue for ``call``: one of its own or of the default ones.

    An unnamed call goes to one of them at random; a named one always to the same, by a hash of its name that does not
    change between processes, because a task's name is unique per queue only.
    """
    queues = call.options.queues or settings.default_queues
    if len(queues) == 1:
        return queues[0]
    if call.options.name is None:
        return random.choice(queues)
    # In the order of their names, so that writing the list in another order moves no name.
    ordered = sorted(set(queues))
    digest = hashlib.sha256(call.options.name.encode()).digest()
    return ordered[int.from_bytes(digest[:8], "big") % len(ordered)]


def target_for(call: Call, settings: Settings, deployment: Deployment) -> str | None:
    """Return the target as ``<version>.<service>``, or None where the process doesn't know its own.

    Without ``_target`` a call stays in the service that enqueues it, or goes from the default service to the background
    module. A ``_target`` of one label is a service, at the version that enqueues. Both labels are always sent, because
    the engines read a single one differently: as a service or as a version (SDK: ``taskqueue.py`` and
    ``cloudtask.py``).
    """
    given = call.options.target
    if given is not None and ("." in given or isinstance(given, TargetAsGiven)):
        return given
    service = given or deployment.service
    if given is None and settings.background_module and deployment.service == "default":
        service = settings.background_module
    if service is None:
        return None
    if deployment.version is None:
        if given is None:
            return None
        raise OptionError(
            "_target",
            given,
            "which version is not known here, because GAE_VERSION is not set; write <version>.<service>.",
        )
    return f"{deployment.version}.{service}"


def url_for(call: Call, settings: Settings) -> str:
    """Return the path that the task is posted to: its ``_url``, or the prefix with the call's label."""
    if call.options.url is None:
        return f"{settings.url_prefix}/{call.label.path}"
    if f"{call.options.url}/".startswith(f"{settings.url_prefix}/"):
        raise OptionError(
            "_url",
            call.options.url,
            f"under {settings.url_prefix} a URL names the call it runs. Leave _url out, or choose a path elsewhere.",
        )
    return call.options.url
