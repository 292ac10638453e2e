"""The SDK's memcache stub, which also remembers which keys were used, so that a person can look at them.

No call of memcache returns the keys, so they are taken from the requests: at most :data:`MOST_KEYS`, those that were
used last.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from google.appengine.api.memcache import memcache_stub

MOST_KEYS = 10_000
_WRITES = frozenset({"Set", "Increment", "BatchIncrement"})


if TYPE_CHECKING:
    # The SDK has no types: what is used of its class.
    class _SdkMemcacheStub:
        def MakeSyncCall(
            self, service: str, call: str, request: Any, response: Any, request_id: str | None = None
        ) -> None: ...
else:
    _SdkMemcacheStub = memcache_stub.MemcacheServiceStub


class KeyedMemcacheStub(_SdkMemcacheStub):
    """The stub. Any thread may ask for the keys."""

    def __init__(self) -> None:
        super().__init__()
        # Guards the keys and the numbers.
        self._keys_lock = threading.Lock()
        self._used_keys: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        self._found, self._found_bytes, self._not_found = 0, 0, 0

    def MakeSyncCall(self, service: str, call: str, request: Any, response: Any, request_id: str | None = None) -> None:
        """Answer one call."""
        super().MakeSyncCall(service, call, request, response, request_id)
        if call in _WRITES:
            keys = [item.key for item in request.item] if call != "Increment" else [request.key]
            with self._keys_lock:
                for key in keys:
                    self._used_keys[request.name_space, key] = None
                    self._used_keys.move_to_end((request.name_space, key))
                while len(self._used_keys) > MOST_KEYS:
                    self._used_keys.popitem(last=False)
        elif call == "Get" and not request.for_peek:
            with self._keys_lock:
                self._found += len(response.item)
                self._found_bytes += sum(len(item.value) for item in response.item)
                self._not_found += len(request.key) - len(response.item)
        elif call == "FlushAll":
            with self._keys_lock:
                self._used_keys.clear()
                self._found, self._found_bytes, self._not_found = 0, 0, 0

    def hits_and_misses(self) -> tuple[int, int, int]:
        """Return the numbers of hits, of misses, and of the hits' bytes. The stub's own also count looks at items."""
        with self._keys_lock:
            return self._found, self._not_found, self._found_bytes

    def used_keys(self) -> list[tuple[str, bytes]]:
        """Return the namespaces and keys that were written, the latest first. Some may have expired."""
        with self._keys_lock:
            return list(reversed(self._used_keys))
