"""What an edge process verifies before the core is asked.

An edge decides nothing: it tells the core which key it has tried on an authenticator, and with
which result. The core takes that for one of its own verifications if the key is still among
those of the queue (`smpd.authorization.authorized_by`). So a key that has changed needs no
message to the edges, and a wrong authenticator costs one verification, be it there, here or,
for a queue that does not exist, with nobody's key.
"""

from __future__ import annotations

from smpd.authorization import authenticated_by
from smpd.peers import Peer
from txsimplex.keys import PublicKey
from txsimplex.smp.transmissions import Proof, Transmission

KEYS_KEPT = 65536
"""Keys that an edge remembers, about 300 bytes each."""


class KnownKeys:
    """The keys that commands of late were verified with, by the entity that they were about."""

    def __init__(self, limit: int = KEYS_KEPT) -> None:
        self._limit = limit
        self._keys: dict[bytes, PublicKey] = {}

    def learn(self, entity_id: bytes, key: PublicKey) -> None:
        """Takes the key that a command about an entity was verified with, for the next ones."""
        keys = self._keys
        keys.pop(entity_id, None)
        keys[entity_id] = key
        if len(keys) > self._limit:
            # The one that was not used for the longest time.
            del keys[next(iter(keys))]

    def prove(self, peer: Peer, transmission: Transmission) -> Proof | None:
        """Whether the authenticator is right with the key that is known; None without one."""
        if not transmission.authenticator:
            return None
        keys = self._keys
        key = keys.pop(transmission.entity_id, None)
        if key is None:
            return None
        keys[transmission.entity_id] = key
        right = authenticated_by(peer, transmission, key)
        return None if right is None else Proof(right, key.raw)
