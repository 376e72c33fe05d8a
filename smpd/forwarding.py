"""Commands that come by way of a proxy, at the relay that they are for (smp-proxy.md §3).

A RFWD is opened before anything else is done with its block; what is in it is authorised and
executed like a command of a client of the version that it was forwarded in, and the answer
is sealed for its sender, and once more for the proxy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from smpd.authorization import CommandError
from smpd.peers import Peer
from smpd.replays import SeenKeys
from txsimplex.boxes import BoxError, BoxKey
from txsimplex.encoding import LargeMessageError, ParseError
from txsimplex.smp import commands as c, errors
from txsimplex.smp.errors import Error
from txsimplex.smp.forwarding import (
    Forwarded,
    open_forwarded,
    open_rfwd,
    seal_answer,
    seal_rres,
)
from txsimplex.smp.messages import Rres
from txsimplex.smp.transmissions import Framing, Refused, Transmission, frame

_ALLOWED: Final = frozenset((c.Send, c.Skey, c.Lkey, c.Lget))
_VERSIONS_KEPT: Final = 32
_NO_AUTH: Final = Error(("PROXY", "BROKER", "TRANSPORT", "NO_AUTH"))


class SessionFull(Exception):
    """No more keys can be remembered (§3.4): a command that was not seen before is left out."""


@dataclass(slots=True)
class Opened:
    """A forwarded command, as its sender made it, and how its answer is sealed.

    `header` is that of RFWD, `peer` the sender as far as the relay knows it.
    """

    header: bytes
    peer: Peer
    item: Transmission | Refused
    rfwd_corr_id: bytes = field(repr=False)
    corr_id: bytes = field(repr=False)
    box: BoxKey
    proxy_box: BoxKey

    def answer(self, transmission: bytes, version: int) -> bytes | None:
        """RRES with the answer to the command; None when that is too large."""
        try:
            sealed = seal_answer(self.box, self.corr_id, frame((transmission,)))
        except LargeMessageError:
            return None
        body = seal_rres(self.proxy_box, self.rfwd_corr_id, self.corr_id, sealed)
        return Rres(body).encode(version)


class Forwarding:
    """What a relay knows of the connection of a proxy: its secret, and the keys seen on it."""

    __slots__ = ("_box", "_peer", "_peers", "_seen")

    def __init__(self, peer: Peer, secret: bytes, seen: SeenKeys | None) -> None:
        self._peer = peer
        self._box = BoxKey(secret)
        self._peers: dict[int, Peer] = {}
        self._seen = seen

    @property
    def is_full(self) -> bool:
        """Whether so many keys were seen that the session has to be renewed."""
        return self._seen is not None and self._seen.is_full

    def open(self, t: Transmission, command: c.Rfwd) -> Opened:
        """What a RFWD brings.

        Raises `CommandError` for what the proxy is told (§3.1), and `SessionFull` for a command
        that is not executed since it could not be told from the same one when that comes again.
        """
        try:
            plain = open_rfwd(self._box, t.corr_id, command.transmission)
        except BoxError:
            raise CommandError(errors.CRYPTO) from None
        try:
            forwarded = Forwarded.decode(plain)
        except ParseError:
            raise CommandError(errors.SYNTAX) from None
        peer = self._sender(forwarded.version)
        key = peer.session_key
        if key is None:
            raise CommandError(_NO_AUTH)
        box = BoxKey(key.exchange(forwarded.key))
        try:
            content = open_forwarded(box, forwarded.corr_id, forwarded.sealed)
        except (BoxError, ParseError):
            raise CommandError(errors.CRYPTO) from None
        if self._seen is not None:
            full = self._seen.is_full
            if self._seen.add(forwarded.key.raw):
                # A sender makes a key for each command: this one was executed already.
                raise CommandError(errors.PROHIBITED)
            if full:
                raise SessionFull
        items = peer.framing.read_commands(content)
        if len(items) != 1:
            raise CommandError(errors.BLOCK)
        item = _allowed(items)
        return Opened(t.header, peer, item, t.corr_id, forwarded.corr_id, box, self._box)

    def _sender(self, version: int) -> Peer:
        """A sender of this version: it has the proxy's session, and nothing else of it."""
        sender = self._peers.get(version)
        if sender is None:
            if len(self._peers) >= _VERSIONS_KEPT:
                self._peers.clear()
            proxy = self._peer
            framing = Framing(version, proxy.framing.session_id)
            sender = Peer(framing, proxy.session_key, proxy.outlet)
            sender.secrets = proxy.secrets
            self._peers[version] = sender
        return sender


def _allowed(items: Sequence[Transmission | Refused]) -> Transmission | Refused:
    item = items[0]
    if type(item) is Transmission and type(item.command) not in _ALLOWED:
        return Refused(item.header, errors.PROHIBITED)
    return item


def opened(peer: Peer, t: Transmission, command: c.Rfwd, keys_remembered: int) -> Opened:
    """What a RFWD on a connection brings; the first one makes it that of a proxy.

    `keys_remembered` is how many keys of commands are remembered to refuse them if they
    come again, 0 for none. Raises `CommandError` and `SessionFull`.
    """
    if peer.secret is None:
        raise CommandError(_NO_AUTH)
    if peer.forwarding is None:
        seen = SeenKeys(keys_remembered, peer.secret) if keys_remembered else None
        peer.forwarding = Forwarding(peer, peer.secret, seen)
    forwarded: Opened = peer.forwarding.open(t, command)
    return forwarded
