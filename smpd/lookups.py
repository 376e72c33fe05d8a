"""What of the store the commands of a block look at, for stores that have to be asked first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from smpd.forwarding import Opened
from smpd.peers import Peer
from smpd.stores.interface import Wanted, What
from txsimplex.smp import commands as c
from txsimplex.smp.transmissions import Refused, Transmission


def lookups(
    peer: Peer, items: Sequence[Transmission | Refused | Opened], expire_before: int | None
) -> list[Wanted] | None:
    """What the commands of a block look at; None when nothing of them has to do with the store.

    `expire_before`: the time of before which messages go from a queue that is sent to, None
    for none.
    """
    wanted: list[Wanted] = []
    concerned = False
    for item in items:
        if type(item) is Opened:
            item = item.item
        if type(item) is Transmission:
            kind = type(item.command)
            if kind in _APART:
                continue
            concerned = True
            look = _LOOK.get(kind)
            if look is not None:
                wanted += look(peer, item, item.command, expire_before)
            elif item.command.of_recipient:
                wanted.append(Wanted(What.RECIPIENT, item.entity_id, _BODIES.get(kind, 0)))
    return wanted if concerned else None


_APART: Final = frozenset((c.Ping, c.Prxy, c.Pfwd, c.Rfwd))

_BODIES: Final = {c.Sub: 1, c.Get: 1, c.Que: 1, c.Ack: 2}
"""An ACK removes the first message and is answered with the next one."""


def _send(
    peer: Peer, t: Transmission, command: c.Command, expire_before: int | None
) -> list[Wanted]:
    return [Wanted(What.SENDER, t.entity_id, 0, expire_before)]


def _skey(
    peer: Peer, t: Transmission, command: c.Command, expire_before: int | None
) -> list[Wanted]:
    return [Wanted(What.SENDER, t.entity_id)]


def _by_link(
    peer: Peer, t: Transmission, command: c.Command, expire_before: int | None
) -> list[Wanted]:
    return [Wanted(What.LINK, t.entity_id)]


def _nsub(
    peer: Peer, t: Transmission, command: c.Command, expire_before: int | None
) -> list[Wanted]:
    return [Wanted(What.NOTIFIER, t.entity_id)]


def _service(
    peer: Peer, t: Transmission, command: c.Command, expire_before: int | None
) -> list[Wanted]:
    return [Wanted(What.SERVICE, t.entity_id)]


def _lset(peer: Peer, t: Transmission, command: c.Lset, expire_before: int | None) -> list[Wanted]:
    return [Wanted(What.RECIPIENT, t.entity_id), Wanted(What.NEW_LINK, command.link_id)]


def _new(peer: Peer, t: Transmission, command: c.New, expire_before: int | None) -> list[Wanted]:
    link = None if command.request is None else command.request.link
    if link is None:
        return []
    wanted = [Wanted(What.NEW_SENDER, link.sender_id)]
    if link.link_id is not None:
        wanted.append(Wanted(What.NEW_LINK, link.link_id))
    return wanted


_Look = Callable[[Peer, Transmission, Any, int | None], list[Wanted]]

_LOOK: Final[dict[type[c.Command], _Look]] = {
    c.Send: _send,
    c.Skey: _skey,
    c.Lkey: _by_link,
    c.Lget: _by_link,
    c.Nsub: _nsub,
    c.Nsubs: _service,
    c.Subs: _service,
    c.Lset: _lset,
    c.New: _new,
}
