"""Transmissions of a client, authorised with the keys of its queues (smp-wire.md §9.1)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from txsimplex.boxes import BoxKey, authenticator
from txsimplex.keys import Algorithm, PrivateKey, PublicKey
from txsimplex.smp.transmissions import Framing

_SECRETS_KEPT = 10_000


@dataclass(frozen=True, slots=True)
class ServiceSession:
    """A service in one session: its id, fingerprint and the session's Ed25519 key (§6.3).

    `fingerprint` is the SHA-256 of the service's identity certificate.
    """

    service_id: bytes
    fingerprint: bytes
    key: PrivateKey


class Signer:
    """Makes the transmissions of one session.

    `server_key` is the relay's X25519 session key, None where its hello had none;
    queue keys of X25519 cannot be used then. The secrets made with it are kept, so
    that a queue's key costs its Diffie-Hellman once in a session.
    """

    def __init__(
        self,
        framing: Framing,
        server_key: PublicKey | None,
        service: ServiceSession | None = None,
    ) -> None:
        self.framing = framing
        self.server_key = server_key
        self.service = service
        self._box_key = lru_cache(maxsize=_SECRETS_KEPT)(self._new_box_key)

    def transmission(
        self,
        corr_id: bytes,
        entity_id: bytes,
        command: bytes,
        key: PrivateKey | None = None,
        *,
        service_signed: bool = False,
    ) -> bytes:
        """An encoded `command` with its ids, authorised by `key`.

        Without a key it has no authenticator. `service_signed` adds the signature of
        the session's service. Raises `ValueError` when the session has no service, or
        no key of the relay for an X25519 key, or the key is of X448.
        """
        authorized = self.framing.authorized(corr_id, entity_id, command)
        if key is None:
            return self.framing.transmission(authorized, b"")
        if not service_signed:
            proof = self.authenticator(key, corr_id, authorized)
            return self.framing.transmission(authorized, proof)
        if self.service is None:
            raise ValueError("the session has no service")
        signature = self.service.key.sign(authorized)
        proof = self.authenticator(key, corr_id, self.service.fingerprint + authorized)
        return self.framing.transmission(authorized, proof, signature)

    def authenticator(self, key: PrivateKey, corr_id: bytes, authorized: bytes) -> bytes:
        """The proof that the holder of `key` sent `authorized`, as the key's algorithm has it."""
        if key.algorithm is Algorithm.X25519:
            return authenticator(self._box_key(key.raw), corr_id, authorized)
        return key.sign(authorized)

    def _new_box_key(self, raw: bytes) -> BoxKey:
        if self.server_key is None:
            raise ValueError("the relay gave no key for X25519 authenticators")
        return BoxKey(PrivateKey(Algorithm.X25519, raw).exchange(self.server_key))
