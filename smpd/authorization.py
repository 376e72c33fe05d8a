"""Who made a transmission (docs/spec/smp-server.md §3).

An answer of AUTH takes the same time whether the queue exists or not: without a
key to verify with, a key made at random is used in its place. For the same reason
the DH secret of an X25519 key is kept only once an authenticator made with it was
right: who does not know the key pays for the DH each time, queue or no queue.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any, Final

from smpd.counters import Counters
from smpd.peers import Peer
from smpd.queues import Queue
from smpd.stores.interface import Store
from txsimplex.boxes import BoxKey, verify_authenticator
from txsimplex.keys import Algorithm, PublicKey, verify
from txsimplex.smp import commands as c, errors
from txsimplex.smp.commands import QueueMode
from txsimplex.smp.errors import Error
from txsimplex.smp.transmissions import (
    ED448_SIGNATURE,
    ED25519_SIGNATURE,
    X25519_AUTHENTICATOR,
    Signed,
    Transmission,
)

_ALGORITHMS: Final = {
    ED25519_SIGNATURE: Algorithm.ED25519,
    ED448_SIGNATURE: Algorithm.ED448,
    X25519_AUTHENTICATOR: Algorithm.X25519,
}

_NOBODY: Final = {
    key.algorithm: key
    for key in (
        PublicKey.decode(base64.b64decode(text))
        for text in (
            "MCowBQYDK2VwAyEA139Oqs4QgpqbAmB0o7rZf6T19ryl7E65k4AYe0kE3Qs=",
            (
                "MEMwBQYDK2VxAzoA6ibQc9XpkSLtwrf7PLvp81qW/etiumckVFImCMRdftcG/XopbOSaq9qyLhrg"
                "JWKOLyNrQPNVvpMA"
            ),
            "MCowBQYDK2VuAyEA4JGSMYht18H4mas/jHeBwfcM7jLwNYJNOAhi2/g4RXg=",
        )
    )
}
"""A key of each algorithm of which nobody has the private part."""

_SECRETS_KEPT: Final = 4096
"""DH secrets kept per connection; more are forgotten together and made again."""


def authorized_by(peer: Peer, transmission: Transmission, keys: Sequence[PublicKey]) -> bool:
    """Whether the authenticator was made with one of `keys`.

    `keys` is empty when there is no such queue; that takes as long. What an edge process has
    verified already, right or wrong, is not verified again: it has cost the same there.
    """
    algorithm = _ALGORITHMS.get(len(transmission.authenticator))
    if algorithm is None:
        return False
    proof = transmission.proof
    tried = proof is not None
    for key in keys:
        if key.algorithm is algorithm:
            if proof is not None and proof.key == key.raw:
                if proof.right:
                    return True
            elif _verify(peer, transmission, key):
                transmission.made_with = key
                return True
            tried = True
    if not tried:
        _verify(peer, transmission, _NOBODY[algorithm])
    return False


def authenticated_by(peer: Peer, signed: Signed, key: PublicKey) -> bool | None:
    """Whether the authenticator was made with `key`; None if it is one of another algorithm."""
    if key.algorithm is not _ALGORITHMS.get(len(signed.authenticator)):
        return None
    return _verify(peer, signed, key)


def _verify(peer: Peer, transmission: Transmission | Signed, key: PublicKey) -> bool:
    authorized = transmission.authorized
    if transmission.service_signature is not None and peer.service is not None:
        # smp-wire.md §9.1
        authorized = peer.service.fingerprint + authorized
    if key.algorithm is not Algorithm.X25519:
        return verify(key, authorized, transmission.authenticator)
    if peer.session_key is None:
        return False
    box = peer.secrets.get(key.raw)
    known = box is not None
    if box is None:
        box = BoxKey(peer.session_key.exchange(key))
    right = verify_authenticator(box, transmission.corr_id, authorized, transmission.authenticator)
    if right and not known:
        if len(peer.secrets) >= _SECRETS_KEPT:
            peer.secrets.clear()
        peer.secrets[key.raw] = box
    return right


def check_service(peer: Peer, transmission: Transmission) -> Error | None:
    """The error about the session's role or the service signature (§3, 1 and 2)."""
    command = transmission.command
    service = peer.service
    if service is not None and command.role is not None and command.role is not service.role:
        return errors.PROHIBITED
    signature = transmission.service_signature
    if service is not None and command.service_signed:
        if signature is None or not verify(service.session_key, transmission.authorized, signature):
            return errors.SERVICE
    elif signature is not None:
        return errors.SERVICE
    return None


def authorized_by_service(peer: Peer, transmission: Transmission) -> bool:
    """Whether the session's service itself made SUBS or NSUBS (§3, 3)."""
    service = peer.service
    return (
        service is not None
        and transmission.entity_id == service.service_id
        and verify(service.session_key, transmission.authorized, transmission.authenticator)
    )


class CommandError(Exception):
    """A command is answered with `error`."""

    def __init__(self, error: Error) -> None:
        self.error = error


class Authority:
    """Decides which commands may be executed, and on which queue."""

    def __init__(self, store: Store, counters: Counters) -> None:
        self._store = store
        self._counters = counters

    def authorize(self, peer: Peer, t: Transmission) -> Queue | None:
        """The queue that the command is about, None for commands about none.

        Raises `CommandError` (§3), and `StoreError` when the store cannot tell.
        """
        error = check_service(peer, t)
        if error is not None:
            raise CommandError(error)
        command = t.command
        if command.of_recipient:
            queue = self._store.by_recipient(t.entity_id)
            self._demand(peer, t, queue, () if queue is None else queue.recipient_keys)
            return queue
        authorize = _AUTHORIZE.get(type(command))
        if authorize is None:
            return None
        found: Queue | None = authorize(self, peer, t, command)
        return found

    def _demand(
        self, peer: Peer, t: Transmission, queue: Queue | None, keys: Sequence[PublicKey]
    ) -> None:
        if not authorized_by(peer, t, keys):
            raise self._refusal(t, queue)

    def _refusal(self, t: Transmission, queue: Queue | None) -> CommandError:
        self._count_refusal(t.command)
        self._store.refused(queue)
        return CommandError(errors.AUTH)

    def _count_refusal(self, command: c.Command) -> None:
        kind = type(command)
        if kind is c.Send:
            self._counters.messages_sent_auth += 1
        elif kind is c.Sub:
            self._counters.subscriptions_auth += 1
        elif kind is c.Nsub:
            self._counters.notifier_subscriptions_auth += 1
        elif kind is c.Get:
            self._counters.messages_got_auth += 1

    def _authorize_send(self, peer: Peer, t: Transmission, command: c.Send) -> Queue:
        queue = self._store.by_sender(t.entity_id)
        if t.authenticator:
            key = None if queue is None else queue.sender_key
            self._demand(peer, t, queue, () if key is None else (key,))
        elif queue is not None and queue.sender_key is not None:
            raise self._refusal(t, queue)
        if queue is None:
            raise self._refusal(t, queue)
        return queue

    def _authorize_new(self, peer: Peer, t: Transmission, command: c.New) -> None:
        self._demand(peer, t, None, (command.recipient_key,))

    def _authorize_securing(self, peer: Peer, t: Transmission, command: c.Skey | c.Lkey) -> Queue:
        if isinstance(command, c.Skey):
            queue = self._store.by_sender(t.entity_id)
        else:
            queue = self._store.by_link(t.entity_id)
        allowed = (
            queue is not None
            and queue.mode is QueueMode.MESSAGING
            and (queue.sender_key is None or queue.sender_key == command.key)
        )
        self._demand(peer, t, queue, (command.key,) if allowed else ())
        assert queue is not None
        return queue

    def _authorize_reading(self, peer: Peer, t: Transmission, command: c.Lget) -> Queue:
        queue = self._store.by_link(t.entity_id)
        if queue is None or not queue.is_contact:
            raise self._refusal(t, queue)
        return queue

    def _authorize_notifier(self, peer: Peer, t: Transmission, command: c.Nsub) -> Queue:
        queue = self._store.by_notifier(t.entity_id)
        notifier = None if queue is None else queue.notifier
        self._demand(peer, t, queue, () if notifier is None else (notifier.key,))
        assert queue is not None
        return queue

    def _authorize_service(self, peer: Peer, t: Transmission, command: c.Command) -> None:
        if not authorized_by_service(peer, t):
            raise CommandError(errors.SERVICE)


_AUTHORIZE: Final[dict[type[c.Command], Callable[[Authority, Peer, Transmission, Any], Any]]] = {
    c.New: Authority._authorize_new,
    c.Send: Authority._authorize_send,
    c.Skey: Authority._authorize_securing,
    c.Lkey: Authority._authorize_securing,
    c.Lget: Authority._authorize_reading,
    c.Nsub: Authority._authorize_notifier,
    c.Subs: Authority._authorize_service,
    c.Nsubs: Authority._authorize_service,
}
