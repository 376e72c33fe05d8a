"""What an edge process verifies before the core is asked.

An edge decides nothing: it tells the core which key it has tried on an authenticator, and with
which result. The core takes that for one of its own verifications if the key is still among
those of the queue (`smpd.authorization.authorized_by`). So a key that has changed needs no
message to the edges, and a wrong authenticator costs one verification, be it there, here or,
for a queue that does not exist, with nobody's key.
"""

from __future__ import annotations

from smpd.authorization import authenticated_by
from smpd.channel import NO_PROOFS, encode_proofs
from smpd.peers import Peer
from txsimplex.encoding import ParseError
from txsimplex.keys import PublicKey
from txsimplex.smp.transmissions import Proof, cut

KEYS_KEPT = 65536
"""Keys that an edge remembers, about 300 bytes each."""


class KnownKeys:
    """The keys that commands of late were verified with, by the entity that they were about."""

    def __init__(self, limit: int = KEYS_KEPT) -> None:
        self._limit = limit
        # With what is sent for the one transmission of a block that the key is right for.
        self._keys: dict[bytes, tuple[PublicKey, bytes]] = {}

    def learn(self, entity_id: bytes, key: PublicKey) -> None:
        """Takes the key that a command about an entity was verified with, for the next ones."""
        keys = self._keys
        keys.pop(entity_id, None)
        keys[entity_id] = key, encode_proofs((Proof(True, key.raw),))
        if len(keys) > self._limit:
            # The one that was not used for the longest time.
            del keys[next(iter(keys))]

    def proofs(self, peer: Peer, content: bytes) -> bytes:
        """What can be said of the commands in the content of a block, as it is sent to the core."""
        size = len(content)
        if size > 3 and content[0] == 1 and (content[1] << 8 | content[2]) == size - 3:
            # So it is for most blocks.
            signed = peer.framing.read_signed(content, 3, size)
            known = None if signed is None else self._known(signed.entity_id)
            if signed is None or known is None:
                return NO_PROOFS
            right = authenticated_by(peer, signed, known[0])
            if right:
                return known[1]
            return NO_PROOFS if right is None else encode_proofs((Proof(False, known[0].raw),))
        try:
            places = cut(content)
        except ParseError:
            return NO_PROOFS
        proofs = [self._prove(peer, content, start, end) for start, end in places]
        return encode_proofs(proofs) if any(proofs) else NO_PROOFS

    def _known(self, entity_id: bytes) -> tuple[PublicKey, bytes] | None:
        """What is known of an entity, which is now the last one that was used."""
        known = self._keys.pop(entity_id, None)
        if known is not None:
            self._keys[entity_id] = known
        return known

    def _prove(self, peer: Peer, content: bytes, start: int, end: int) -> Proof | None:
        """Whether the authenticator is right with the key that is known; None without one."""
        signed = peer.framing.read_signed(content, start, end)
        known = None if signed is None else self._known(signed.entity_id)
        if signed is None or known is None:
            return None
        right = authenticated_by(peer, signed, known[0])
        return None if right is None else Proof(right, known[0].raw)
