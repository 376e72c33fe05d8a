"""When the keys of no more forwarded commands can be remembered (smp-proxy.md §3.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from twisted.internet.task import Clock

from smpd.stores.interface import Wanted
from tests.smpd.people import key, new_relay, random
from tests.smpd.test_waiting_answers import Scene, SlowStore
from tests.smpd.wires import Client, Sessions
from txsimplex.boxes import BoxKey, nonce_from
from txsimplex.keys import Algorithm
from txsimplex.smp import commands as c, errors, messages as m
from txsimplex.smp.errors import Error
from txsimplex.smp.forwarding import Forwarded, seal_rfwd
from txsimplex.smp.transmissions import Framing, frame

MOST = 3


class AskedStore(SlowStore):
    """One that others share: it admits blocks when the test says so."""

    shared = True

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Callable[[], None]] = []

    def admit(self, wanted: Sequence[Wanted], work: Callable[[], None], line: object) -> None:
        self.waiting.append(work)

    def admit_all(self) -> None:
        """All blocks that wait."""
        waiting, self.waiting = self.waiting, []
        for each in waiting:
            each()


class Full(Scene):
    """A relay that remembers three keys, a queue, and a proxy's connection."""

    def __init__(self, apart: bool, store: SlowStore | None = None, answer_time: float = 0) -> None:
        self.store = store or SlowStore()
        self.clock = Clock()
        self.relay = new_relay(self.store, quota=100, forwarded_keys=MOST)
        self.sessions = Sessions(self.relay, self.clock, None, apart, answer_time)
        self.recipient, self.proxy = Client(self.sessions), Client(self.sessions)
        self.key = key()
        new = c.New(self.key.public, key(Algorithm.X25519).public, None, False)
        self.recipient.send(self.recipient.transmission(new, b"", self.key))
        self.admit_all()
        self.store.commit()
        (ids,) = self.answers(self.recipient)
        assert isinstance(ids, m.Ids)
        self.ids = ids

    def admit_all(self) -> None:
        """What a shared store has to admit."""
        if isinstance(self.store, AskedStore):
            self.store.admit_all()

    def rfwd(self, number: int = 0) -> Callable[[], bytes]:
        """Makes RFWD with the same SEND, as often as it is called."""
        peer = self.proxy.peer
        assert peer is not None
        assert peer.session_key is not None
        assert peer.secret is not None
        secret = BoxKey(peer.secret)
        framing = Framing(17, peer.framing.session_id)
        private, corr_id = key(Algorithm.X25519), random(24)
        send = c.Send(False, b"%d" % number).encode(17)
        authorized = framing.authorized(corr_id, self.ids.sender_id, send)
        content = frame([framing.transmission(authorized, b"")])
        box = BoxKey(private.exchange(peer.session_key.public))
        # Small, so that one block holds all that a test sends.
        sealed = box.seal_padded(content, nonce_from(corr_id), 128)
        forwarded = Forwarded(corr_id, 17, private.public, sealed)

        def once_more() -> bytes:
            nonce = random(24)
            command = c.Rfwd(seal_rfwd(secret, nonce, forwarded))
            return self.proxy.transmission(command, b"", corr_id=nonce)

        return once_more

    def told(self) -> list[m.Message | Error]:
        """What the proxy was answered, without what is in RRES."""
        return [m.Rres(b"") if isinstance(one, m.Rres) else one for one in self.answers(self.proxy)]


@pytest.fixture(params=[False, True], ids=["one process", "an edge"])
def apart(request: pytest.FixtureRequest) -> bool:
    """Whether there is a channel between sessions and relay."""
    found: bool = request.param
    return found


RRES = m.Rres(b"")


def test_the_connection_is_closed_after_answers_that_wait_for_the_store(apart: bool) -> None:
    scene = Full(apart)
    for number in range(MOST):
        scene.proxy.send(scene.rfwd(number)())
    assert [scene.proxy.wire.closed, scene.proxy.wire.reading] == [None, False]
    scene.store.commit()
    assert scene.told() == [RRES] * MOST
    assert scene.proxy.wire.closed == "lost"
    assert not scene.proxy.wire.reading


def test_it_is_closed_also_when_the_store_fails(apart: bool) -> None:
    scene = Full(apart)
    for number in range(MOST):
        scene.proxy.send(scene.rfwd(number)())
    scene.store.fail("the disk is full")
    assert scene.told() == []
    scene.clock.advance(10)
    assert len(scene.told()) == MOST
    assert scene.proxy.wire.closed == "lost"


def test_it_is_closed_after_what_has_yet_to_be_admitted(apart: bool) -> None:
    store = AskedStore()
    scene = Full(apart, store)
    ping = scene.proxy.transmission(c.Ping())
    for number in range(MOST):
        scene.proxy.send(scene.rfwd(number)())
    scene.proxy.send(ping)
    store.waiting.pop(0)()
    store.commit()
    assert scene.told() == [RRES]
    store.admit_all()
    assert [scene.proxy.wire.closed, scene.proxy.wire.reading] == [None, False]
    store.commit()
    assert scene.told() == [RRES] * (MOST - 1) + [m.Pong()]
    assert scene.proxy.wire.closed == "lost"


def test_it_is_closed_after_answers_that_are_not_due(apart: bool) -> None:
    scene = Full(apart, None, 2.0)
    for number in range(MOST):
        scene.proxy.send(scene.rfwd(number)())
    scene.store.commit()
    assert scene.told() == [RRES] * MOST
    assert scene.proxy.wire.closed == "lost"
    assert scene.clock.getDelayedCalls() == []


def test_one_that_leaves_before_is_forgotten(apart: bool) -> None:
    scene = Full(apart)
    for number in range(MOST):
        scene.proxy.send(scene.rfwd(number)())
    scene.proxy.leave()
    assert not scene.sessions.holding
    scene.store.commit()
    assert scene.proxy.wire.blocks == []


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("blocks", [False, True])
def test_each_command_is_executed_once_at_most(apart: bool, blocks: bool, shared: bool) -> None:
    """What comes in the last block, or was under way, is not remembered: it is not executed."""
    scene = Full(apart, AskedStore() if shared else None)
    first, other = scene.rfwd(), scene.rfwd()
    sent = [first(), first(), scene.rfwd()(), scene.rfwd()(), *(other() for _ in range(5)), first()]
    if blocks:
        # Of a session that has stopped to read nothing would come here.
        for one in sent:
            scene.proxy.send(one)
    else:
        scene.proxy.send(*sent, scene.proxy.transmission(c.Ping()))
    scene.admit_all()
    scene.store.commit()
    told = scene.told()
    assert told.count(RRES) == MOST
    assert told.count(m.Err(errors.PROHIBITED)) == 2
    assert len(told) == MOST + 2 + (not blocks)
    assert scene.relay.counters.forwarded_received == MOST
    assert scene.proxy.wire.closed == "lost"
