"""A session at work (docs/spec/smp-server.md §2; smp-wire.md §7, §8; conformance C, H, P)."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from twisted.internet.address import UNIXAddress
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure

from smpd.session import SessionLimits
from tests.smpd.people import Subscriber, key, new_relay, random
from tests.smpd.wires import ADDRESS, Client, Sessions, new_service, new_sessions
from txsimplex.blocks_transport import BLOCK_SIZE
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp import commands as c, errors, messages as m
from txsimplex.smp.transmissions import Received


@pytest.fixture
def clock() -> Clock:
    """The reactor's time."""
    return Clock()


@pytest.fixture(params=[False, True], ids=["one process", "an edge"])
def sessions(clock: Clock, request: pytest.FixtureRequest) -> Sessions:
    """Of a new relay."""
    return new_sessions(new_relay(), clock, apart=request.param)


@dataclass
class Owned:
    """A queue of a client: its recipient's key and its ids."""

    private: PrivateKey
    ids: m.Ids

    def command(self, client: Client, command: c.Command) -> bytes:
        """A command of the recipient."""
        return client.transmission(command, self.ids.recipient_id, self.private)


def one(client: Client) -> Received:
    """The one message that has come."""
    ((received,),) = client.received()
    return received


def new_queue(client: Client, subscribe: bool = True) -> Owned:
    """A queue of `client`."""
    private = key()
    new = c.New(private.public, key(Algorithm.X25519).public, None, subscribe)
    new.request = c.QueueRequest(c.QueueMode.MESSAGING)
    client.send(client.transmission(new, b"", private))
    ids = one(client).message
    assert isinstance(ids, m.Ids)
    return Owned(private, ids)


def send(client: Client, queue: Owned, body: bytes = b"hello", notify: bool = False) -> None:
    """A message to a queue, which is accepted."""
    client.send(client.transmission(c.Send(notify, body), queue.ids.sender_id))
    assert client.received()[-1][-1].message == m.Ok()


def kinds(blocks: list[list[Received]]) -> list[list[str]]:
    """The names of the messages of each block."""
    return [[type(each.message).__name__ for each in block] for block in blocks]


# -- order of what is sent


def test_118_a_message_shares_the_block_of_its_subscription(sessions: Sessions) -> None:
    client, sender = Client(sessions), Client(sessions)
    queue = new_queue(client, subscribe=False)
    send(sender, queue)
    client.send(queue.command(client, c.Sub()))
    assert kinds(client.received()) == [["Sok", "Msg"]]


@pytest.mark.parametrize(
    ("count", "blocks"),
    [
        (2, [["Sok", "Sok", "Msg"], ["Msg"]]),
        (3, [["Sok", "Sok", "Sok", "Msg"], ["Msg"], ["Msg"]]),
        # Three are all that fit beside a message (smp-wire.md §8).
        (4, [["Sok"], ["Sok", "Sok", "Sok", "Msg"], ["Msg"], ["Msg"], ["Msg"]]),
        (5, [["Sok"] * 5, *[["Msg"]] * 5]),
        (7, [["Sok"] * 7, *[["Msg"]] * 7]),
    ],
)
def test_119_answers_and_messages_of_a_block(
    sessions: Sessions, count: int, blocks: list[list[str]]
) -> None:
    """smp-server.md §2.2."""
    client, sender = Client(sessions), Client(sessions)
    queues = [new_queue(client, subscribe=False) for _ in range(count)]
    for queue in queues:
        send(sender, queue)
    client.send(*(queue.command(client, c.Sub()) for queue in queues))
    received = client.received()
    assert kinds(received) == blocks
    ids = [queue.ids.recipient_id for queue in queues]
    messages = [each for block in received for each in block]
    for name in ("Sok", "Msg"):
        of_kind = [each for each in messages if type(each.message).__name__ == name]
        assert [each.entity_id for each in of_kind] == ids


def test_the_first_message_need_not_be_of_the_first_subscription(sessions: Sessions) -> None:
    client, sender = Client(sessions), Client(sessions)
    queues = [new_queue(client, subscribe=False) for _ in range(3)]
    send(sender, queues[2])
    client.send(*(queue.command(client, c.Sub()) for queue in queues))
    (block,) = client.received()
    assert [each.entity_id for each in block] == [
        *(queue.ids.recipient_id for queue in queues),
        queues[2].ids.recipient_id,
    ]


def test_many_answers_without_messages_share_blocks(sessions: Sessions) -> None:
    client = Client(sessions)
    queues = [new_queue(client, subscribe=False) for _ in range(100)]
    client.send(*(queue.command(client, c.Sub()) for queue in queues))
    assert kinds(client.received()) == [["Sok"] * 100]


def test_errors_of_verification_are_a_block_before(sessions: Sessions) -> None:
    """smp-server.md §2.1, 3."""
    client = Client(sessions)
    queue = new_queue(client)
    client.send(
        client.transmission(c.Ping()),
        client.transmission(c.Sub(), random(24), key()),
        queue.command(client, c.Sub()),
        client.transmission(c.Que(), queue.ids.recipient_id),
    )
    refused, answered = client.received()
    assert [each.message for each in refused] == [m.Err(errors.AUTH), m.Err(errors.NO_AUTH)]
    assert [each.message for each in answered] == [m.Pong(), m.Sok()]


def test_122_a_message_to_oneself_comes_before_the_answer(sessions: Sessions) -> None:
    client = Client(sessions)
    queue = new_queue(client)
    client.send(client.transmission(c.Send(False, b"hello"), queue.ids.sender_id))
    assert kinds(client.received()) == [["Msg"], ["Ok"]]


def test_what_many_are_told_shares_blocks(sessions: Sessions) -> None:
    """Conformance 50: as smp-wire.md §8 packs."""
    client, other = Client(sessions), Client(sessions)
    queues = [new_queue(client) for _ in range(300)]
    for queue in queues:
        other.send(queue.command(other, c.Sub()))
    sessions.relay.send_events()
    blocks = client.received()
    assert [len(block) for block in blocks] == [45, 255]
    assert [each.entity_id for block in blocks for each in block] == [
        queue.ids.recipient_id for queue in reversed(queues)
    ]


def test_051_notifications_share_blocks(sessions: Sessions) -> None:
    client, notified = Client(sessions), Client(sessions)
    queue, subscriber = new_queue(client, subscribe=False), Subscriber.new()
    client.send(queue.command(client, c.Nkey(*subscriber.request)))
    nid = one(client).message
    assert isinstance(nid, m.Nid)
    notified.send(notified.transmission(c.Nsub(), nid.notifier_id, subscriber.private))
    assert one(notified).message == m.Sok()
    for _ in range(100):
        send(client, queue, notify=True)
    other = new_queue(client, subscribe=False)
    client.send(other.command(client, c.Nkey(*subscriber.request)))
    nid = one(client).message
    assert isinstance(nid, m.Nid)
    notified.send(notified.transmission(c.Nsub(), nid.notifier_id, subscriber.private))
    assert one(notified).message == m.Sok()
    for _ in range(100):
        send(client, other, notify=True)
    sessions.relay.send_notifications()
    assert [len(block) for block in notified.received()] == [40, 80, 80]


# -- blocks that cannot be read


@pytest.mark.parametrize("version", [6, 10, 18])
def test_253_a_bad_block_is_answered_and_the_session_goes_on(
    sessions: Sessions, version: int
) -> None:
    client = Client(sessions, version)
    for content in (b"", b"\0", b"\x01", b"\x01\0\x05ab", b"\x02" + b"\0\x01x" * 3):
        client.send_content(content)
        assert one(client) == Received(b"", b"", m.Err(errors.BLOCK))
    client.send(client.transmission(c.Ping()))
    assert one(client).message == m.Pong()
    assert client.wire.closed is None


def test_253_a_block_that_does_not_decrypt(sessions: Sessions) -> None:
    """smp-wire.md §7: the chains advance with it."""
    client = Client(sessions)
    good = client.seal(b"never mind")
    client.session.blockReceived(good[:-1] + bytes((good[-1] ^ 1,)))
    assert one(client) == Received(b"", b"", m.Err(errors.BLOCK))
    client.send(client.transmission(c.Ping()))
    assert one(client).message == m.Pong()
    client.session.blockReceived(bytes(BLOCK_SIZE))
    assert one(client) == Received(b"", b"", m.Err(errors.BLOCK))
    client.seal(b"the block that the client has not sent, but the relay has counted")
    client.send(client.transmission(c.Ping()))
    assert one(client).message == m.Pong()
    assert client.wire.closed is None


def test_a_plain_block_with_a_wrong_length_inside(sessions: Sessions) -> None:
    client = Client(sessions, 10)
    client.session.blockReceived(b"\xff" * BLOCK_SIZE)
    assert one(client) == Received(b"", b"", m.Err(errors.BLOCK))


def test_255_bad_transmissions(sessions: Sessions) -> None:
    client = Client(sessions)
    client.send(*[b""] * 255)
    (block,) = client.received()
    assert [each.message for each in block] == [m.Err(errors.BLOCK)] * 255


# -- back-pressure


def test_a_client_that_does_not_read_is_not_read_from(sessions: Sessions) -> None:
    """smp-server.md §2."""
    client = Client(sessions)
    client.session.pauseProducing()
    assert not client.wire.reading
    client.session.resumeProducing()
    assert client.wire.reading


def test_messages_wait_for_a_client_that_does_not_read(clock: Clock) -> None:
    sessions = new_sessions(new_relay(), clock, SessionLimits(send_queue=10))
    client, sender = Client(sessions), Client(sessions)
    queues = [new_queue(client) for _ in range(3)]
    client.session.pauseProducing()
    client.wire.buffered = 10 * BLOCK_SIZE - 1
    send(sender, queues[0])
    assert kinds(client.received()) == [["Msg"]]
    client.wire.buffered = 10 * BLOCK_SIZE
    for queue in queues[1:]:
        send(sender, queue)
    assert client.received() == []
    client.wire.buffered = 2 * BLOCK_SIZE
    client.session.resumeProducing()
    messages = [each for block in client.received() for each in block]
    assert {each.entity_id for each in messages} == {queue.ids.recipient_id for queue in queues[1:]}
    assert kinds([messages]) == [["Msg", "Msg"]]


@pytest.mark.parametrize("send_queue", [1, 2, 5])
def test_no_message_waits_for_a_client_that_is_never_paused(clock: Clock, send_queue: int) -> None:
    """Whatever the limit: nobody would say when the wait is over."""
    sessions = new_sessions(new_relay(), clock, SessionLimits(send_queue=send_queue))
    client, sender = Client(sessions), Client(sessions)
    queue = new_queue(client)
    client.wire.buffered = 7 * BLOCK_SIZE
    send(sender, queue)
    assert kinds(client.received()) == [["Msg"]]


def test_a_client_that_is_resumed_gets_what_waits(clock: Clock) -> None:
    """Also when more is left to write than the limit: it is asked only this once."""
    sessions = new_sessions(new_relay(), clock, SessionLimits(send_queue=1))
    client, sender = Client(sessions), Client(sessions)
    queue = new_queue(client)
    client.session.pauseProducing()
    client.wire.buffered = 8 * BLOCK_SIZE
    send(sender, queue)
    assert client.received() == []
    client.wire.buffered = 2 * BLOCK_SIZE
    client.session.resumeProducing()
    assert kinds(client.received()) == [["Msg"]]


def test_answers_are_sent_to_a_client_that_does_not_read(clock: Clock) -> None:
    """To what it has already asked."""
    sessions = new_sessions(new_relay(), clock, SessionLimits(send_queue=1))
    client = Client(sessions)
    client.session.pauseProducing()
    client.wire.buffered = 5 * BLOCK_SIZE
    client.send(client.transmission(c.Ping()))
    assert one(client).message == m.Pong()


def test_a_client_that_does_not_read_is_told_of_ends_later(clock: Clock) -> None:
    sessions = new_sessions(new_relay(), clock, SessionLimits(send_queue=1))
    client, other = Client(sessions), Client(sessions)
    queue = new_queue(client)
    other.send(queue.command(other, c.Sub()))
    client.session.pauseProducing()
    client.wire.buffered = BLOCK_SIZE
    sessions.relay.send_events()
    assert client.received() == []
    client.wire.buffered = 0
    client.session.resumeProducing()
    sessions.relay.send_events()
    assert kinds(client.received()) == [["End"]]


def test_resuming_before_the_handshake(sessions: Sessions) -> None:
    client = Client(sessions, greet=False)
    client.session.pauseProducing()
    client.session.resumeProducing()
    client.greet()
    client.send(client.transmission(c.Ping()))
    assert one(client).message == m.Pong()


# -- the end


def test_a_client_that_left_is_subscribed_to_nothing(sessions: Sessions) -> None:
    client, sender = Client(sessions), Client(sessions)
    queue = new_queue(client)
    peer = client.peer
    assert peer is not None
    client.leave()
    assert sessions.sessions == {sender.session}
    assert peer.subscriptions == {}
    send(sender, queue)
    sender.send(queue.command(sender, c.Sub()))
    assert kinds(sender.received()) == [["Sok", "Msg"]]
    sessions.relay.send_events()
    assert client.wire.blocks == []


def test_nothing_is_sent_to_a_client_that_left(sessions: Sessions) -> None:
    client = Client(sessions)
    client.leave()
    assert client.session.full
    client.session.send([b"anything"])
    client.session.send([b"anything"] * 2)
    client.session.close()
    client.session.abort()
    assert client.wire.blocks == []
    assert client.wire.closed is None


def test_all_are_closed_in_order(sessions: Sessions, clock: Clock) -> None:
    clients = [Client(sessions) for _ in range(3)]
    closed = sessions.close_all(5)
    ended: list[None] = []
    closed.addCallback(ended.append)
    assert [client.wire.closed for client in clients] == ["lost"] * 3
    for client in clients:
        assert not ended
        client.leave()
    assert ended == [None]
    assert clock.getDelayedCalls() == []


@pytest.mark.parametrize("address", [UNIXAddress(None), UNIXAddress(b"/run/client")])
def test_so_many_come_through_unix_sockets(sessions: Sessions, address: UNIXAddress) -> None:
    """Others are not counted, and one that leaves makes room."""
    sessions.limits = SessionLimits(most_by_unix=2)
    first, second = [sessions.buildReceiver(address) for _ in range(2)]
    assert first is not None
    assert sessions.buildReceiver(address) is None
    others = [sessions.buildReceiver(ADDRESS) for _ in range(3)]
    assert sessions.by_unix == {first, second}
    assert sessions.sessions == {first, second, *others}
    for _ in range(2):
        first.connectionLost(Failure(ConnectionDone()))
        assert sessions.by_unix == {second}
    assert sessions.buildReceiver(address) is not None
    assert sessions.buildReceiver(address) is None
    assert sessions.buildReceiver(ADDRESS) is not None


def test_without_a_limit_any_number_comes_through_unix_sockets(sessions: Sessions) -> None:
    assert all(sessions.buildReceiver(UNIXAddress(None)) for _ in range(100))
    assert len(sessions.by_unix) == 100


def test_there_are_so_many_connections_at_most(sessions: Sessions, clock: Clock) -> None:
    """Those in their handshake are counted; one that ends makes room."""
    sessions.limits = SessionLimits(most=2)
    client, silent = Client(sessions), sessions.buildReceiver(UNIXAddress(None))
    assert silent is not None
    with capturedLogs() as events:
        for _ in range(100):
            assert sessions.buildReceiver(ADDRESS) is None
            assert sessions.buildReceiver(UNIXAddress(None)) is None
        clock.advance(60)
        assert sessions.buildReceiver(ADDRESS) is None
    # A flood is no flood in the log.
    assert len(events) == 2
    assert "there are 2 connections, more are refused" in (formatEvent(events[0]) or "")
    silent.connectionLost(Failure(ConnectionDone()))
    assert sessions.buildReceiver(ADDRESS) is not None
    assert sessions.buildReceiver(ADDRESS) is None
    client.leave()
    assert sessions.buildReceiver(ADDRESS) is not None


def test_those_that_do_not_close_are_cut_off(sessions: Sessions, clock: Clock) -> None:
    clients = [Client(sessions) for _ in range(2)]
    sessions.buildReceiver(ADDRESS)
    ended: list[None] = []
    sessions.close_all(5).addCallback(ended.append)
    clients[0].leave()
    clock.advance(5.1)
    assert clients[0].wire.closed == "lost"
    assert clients[1].wire.closed == "aborted"
    assert ended == [None]
    clients[1].leave()


def test_without_connections_there_is_nothing_to_close(sessions: Sessions, clock: Clock) -> None:
    ended: list[None] = []
    sessions.close_all(5).addCallback(ended.append)
    assert ended == [None]
    assert clock.getDelayedCalls() == []


# -- inactive clients


def closed_after(sessions: Sessions, clock: Clock, client: Client, seconds: float) -> bool:
    """Whether a client that was silent for so long is closed for it; the limit is 100."""
    clock.advance(seconds)
    sessions.conversations.close_idle(100)
    return client.wire.closed == "lost"


def test_206_a_silent_client_is_closed(sessions: Sessions, clock: Clock) -> None:
    client = Client(sessions)
    assert not closed_after(sessions, clock, client, 100)
    assert closed_after(sessions, clock, client, 1)


def test_208_a_client_that_asks_is_not_closed(sessions: Sessions, clock: Clock) -> None:
    client = Client(sessions)
    for _ in range(5):
        assert not closed_after(sessions, clock, client, 99)
        client.send(client.transmission(c.Ping()))
    assert closed_after(sessions, clock, client, 101)


def test_a_client_that_is_told_something_is_not_closed(sessions: Sessions, clock: Clock) -> None:
    """smp-server.md §2: the later one of receiving and sending counts."""
    client, other = Client(sessions), Client(sessions)
    queue = new_queue(client)
    clock.advance(90)
    other.send(queue.command(other, c.Sub()))
    sessions.relay.send_events()
    assert kinds(client.received()) == [["End"]]
    assert not closed_after(sessions, clock, client, 90)
    assert closed_after(sessions, clock, client, 11)
    assert other.wire.closed is None


def test_207_a_subscribed_client_is_not_closed(sessions: Sessions, clock: Clock) -> None:
    client = Client(sessions)
    queue = new_queue(client)
    assert not closed_after(sessions, clock, client, 100_000)
    client.send(queue.command(client, c.Del()))
    assert closed_after(sessions, clock, client, 101)


def test_a_client_that_only_gets_is_closed(sessions: Sessions, clock: Clock) -> None:
    client = Client(sessions)
    queue = new_queue(client, subscribe=False)
    client.send(queue.command(client, c.Get()))
    assert one(client).message == m.Ok()
    assert closed_after(sessions, clock, client, 101)


def test_a_notified_client_is_not_closed(sessions: Sessions, clock: Clock) -> None:
    owner = Client(sessions)
    queue, subscriber = new_queue(owner), Subscriber.new()
    owner.send(queue.command(owner, c.Nkey(*subscriber.request)))
    nid = one(owner).message
    assert isinstance(nid, m.Nid)
    client = Client(sessions)
    client.send(client.transmission(c.Nsub(), nid.notifier_id, subscriber.private))
    assert not closed_after(sessions, clock, client, 100_000)
    owner.send(queue.command(owner, c.Ndel()))
    sessions.relay.send_events()
    assert closed_after(sessions, clock, client, 101)


@pytest.mark.parametrize("command", ["NSUB", "NSUBS"])
def test_a_service_that_is_subscribed_is_not_closed(
    sessions: Sessions, clock: Clock, command: str
) -> None:
    owner = Client(sessions)
    queue, subscriber = new_queue(owner), Subscriber.new()
    owner.send(queue.command(owner, c.Nkey(*subscriber.request)))
    nid = one(owner).message
    assert isinstance(nid, m.Nid)
    service = new_service()
    client = Client(sessions, service=service)
    if command == "NSUB":
        client.send(client.transmission(c.Nsub(), nid.notifier_id, subscriber.private))
    else:
        client.send(client.transmission(c.Nsubs(), client.service_id, service.session_key))
    assert isinstance(one(client).message, (m.Sok, m.Soks))
    assert not closed_after(sessions, clock, client, 100_000)


def test_a_service_that_is_not_subscribed_is_closed(sessions: Sessions, clock: Clock) -> None:
    client = Client(sessions, service=new_service())
    assert closed_after(sessions, clock, client, 101)


def test_a_client_in_the_handshake_has_its_own_time_limit(sessions: Sessions, clock: Clock) -> None:
    client = Client(sessions, greet=False)
    assert not closed_after(sessions, clock, client, 110)
