"""An edge and its core, with nothing between them but frames (docs/architecture.md)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any, cast

import pytest
from twisted.internet.address import UNIXAddress
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogLevel, globalLogPublisher
from twisted.python.failure import Failure

from smpd import authorization
from smpd.channel import HEAD_SIZE, MAX_PAYLOAD, Kind, Level, decode_entry, encode_entry, head
from smpd.conduit import pair
from smpd.conversation import Conversation
from smpd.edge import MOST_UNDER_WAY, CoresLog, Edge
from smpd.edge_channel import EdgeChannel
from smpd.session import Session
from tests.smpd.people import key, new_relay, random
from tests.smpd.wires import Client, Straight, new_service, new_sessions
from txsimplex.blocks_transport import BLOCK_SIZE
from txsimplex.keys import Algorithm, PrivateKey, PublicKey, verify
from txsimplex.smp import commands as c, errors, messages as m

AUTH = m.Err(errors.AUTH)
AS_EDGE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.execv(sys.executable, [sys.executable, "-m", "smpd.edge"])
"""


class Scene:
    """An edge with a client that has a queue, and its core."""

    def __init__(self) -> None:
        self.relay = new_relay()
        self.sessions = new_sessions(self.relay, Clock(), apart=True)
        self.client = Client(self.sessions)
        self.key = key()
        new = c.New(self.key.public, key(Algorithm.X25519).public, None, True)
        new.request = c.QueueRequest(c.QueueMode.CONTACT)
        self.client.send(self.client.transmission(new, b"", self.key))
        ids = self.answer()
        assert isinstance(ids, m.Ids)
        self.ids = ids
        self.told()

    @property
    def edge(self) -> Edge:
        """The edge."""
        assert self.sessions.edge is not None
        return self.sessions.edge

    @property
    def channel(self) -> EdgeChannel:
        """The core's side of the channel."""
        assert self.sessions.channel is not None
        return self.sessions.channel

    @property
    def at_edge(self) -> Straight:
        """The edge's end."""
        return cast(Straight, self.edge.conduit)

    @property
    def at_core(self) -> Straight:
        """The core's end."""
        return cast(Straight, self.channel.conduit)

    def told(self) -> list[Kind]:
        """What the core has told the edge since the last time."""
        told, self.at_core.sent = self.at_core.sent, []
        return told

    def answer(self) -> object:
        """The one message that has come."""
        ((received,),) = self.client.received()
        return received.message

    def ask(self, command: c.Command, private: PrivateKey, entity_id: bytes | None = None) -> Any:
        """The answer to a command on the queue."""
        entity_id = self.ids.recipient_id if entity_id is None else entity_id
        self.client.send(self.client.transmission(command, entity_id, private, random(24)))
        return self.answer()

    def send(self, body: bytes = b"hello") -> None:
        """A message from another connection, which is accepted."""
        sender = Client(self.sessions)
        sender.send(sender.transmission(c.Send(False, body), self.ids.sender_id))
        assert sender.received()[-1][-1].message == m.Ok()


@pytest.fixture
def scene() -> Scene:
    """One of each."""
    return Scene()


@pytest.fixture
def verifications(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often a signature was verified since the last time, on either side."""
    count = 0

    def counted(public: PublicKey, message: bytes, signature: bytes) -> bool:
        nonlocal count
        count += 1
        return verify(public, message, signature)

    def since() -> int:
        nonlocal count
        found, count = count, 0
        return found

    monkeypatch.setattr(authorization, "verify", counted)
    return since


# -- who verifies


def test_a_key_is_learned_once(scene: Scene, verifications: Callable[[], int]) -> None:
    assert isinstance(scene.ask(c.Que(), scene.key), m.Info)
    assert scene.told() == [Kind.ANSWER, Kind.LEARN]
    for _ in range(3):
        assert isinstance(scene.ask(c.Que(), scene.key), m.Info)
        assert scene.told() == [Kind.ANSWER]
    assert verifications() == 4


def test_each_refusal_costs_one_verification(
    scene: Scene, verifications: Callable[[], int]
) -> None:
    """Whether there is such a queue, and whether the edge knows its key."""
    assert scene.ask(c.Que(), key()) == AUTH
    assert verifications() == 1
    scene.ask(c.Que(), scene.key)
    assert verifications() == 1
    assert scene.ask(c.Que(), key()) == AUTH
    assert verifications() == 1
    assert scene.ask(c.Que(), key(), random(24)) == AUTH
    assert verifications() == 1
    assert isinstance(scene.ask(c.Que(), scene.key), m.Info)


def test_a_key_that_has_changed(scene: Scene, verifications: Callable[[], int]) -> None:
    """An edge that knows the former key only makes it dearer, and decides nothing."""
    new = key()
    scene.ask(c.Que(), scene.key)
    assert scene.ask(c.Rkey([new.public]), scene.key) == m.Ok()
    verifications()
    assert scene.ask(c.Que(), scene.key) == AUTH
    scene.told()
    assert isinstance(scene.ask(c.Que(), new), m.Info)
    assert scene.told() == [Kind.ANSWER, Kind.LEARN]
    verifications()
    assert isinstance(scene.ask(c.Que(), new), m.Info)
    assert verifications() == 1


def test_a_queue_that_is_deleted(scene: Scene, verifications: Callable[[], int]) -> None:
    scene.ask(c.Que(), scene.key)
    assert scene.ask(c.Del(), scene.key) == m.Ok()
    verifications()
    assert scene.ask(c.Que(), scene.key) == AUTH
    assert verifications() == 1


@pytest.mark.parametrize("algorithm", [Algorithm.ED25519, Algorithm.ED448, Algorithm.X25519])
def test_senders_of_every_algorithm(scene: Scene, algorithm: Algorithm) -> None:
    sender, stranger = key(algorithm), key(algorithm)
    assert scene.ask(c.Key(sender.public), scene.key) == m.Ok()
    scene.ask(c.Off(), scene.key)
    scene.told()
    for told in ([Kind.ANSWER, Kind.LEARN], [Kind.ANSWER], [Kind.ANSWER]):
        command = c.Send(False, b"hello")
        # Suspended, so that no message comes; who is not permitted gets the same error.
        assert scene.ask(command, sender, scene.ids.sender_id) == AUTH
        assert scene.told() == told
        assert scene.ask(command, stranger, scene.ids.sender_id) == AUTH
        assert scene.told() == [Kind.ANSWER]


def test_new_queues_teach_nothing(scene: Scene) -> None:
    private = key()
    new = c.New(private.public, key(Algorithm.X25519).public)
    assert isinstance(scene.ask(new, private, b""), m.Ids)
    assert scene.told() == [Kind.ANSWER]


def test_commands_of_a_block(scene: Scene) -> None:
    client = scene.client
    scene.ask(c.Que(), scene.key)
    client.send(
        client.transmission(c.Que(), scene.ids.recipient_id, scene.key),
        client.transmission(c.Que(), scene.ids.recipient_id, key()),
        client.transmission(c.Ping()),
    )
    (refused,), (info, pong) = client.received()
    assert refused.message == AUTH
    assert isinstance(info.message, m.Info)
    assert pong.message == m.Pong()


# -- back-pressure


def test_a_full_client_gets_messages_when_it_has_caught_up(scene: Scene) -> None:
    client = scene.client
    client.session.pauseProducing()
    client.wire.buffered = 128 * BLOCK_SIZE
    assert isinstance(scene.ask(c.Que(), scene.key), m.Info)
    assert scene.at_edge.sent[-1] == Kind.FULL
    scene.send()
    assert client.wire.blocks == []
    client.wire.buffered = 0
    client.session.resumeProducing()
    assert scene.at_edge.sent[-1:] == [Kind.READY]
    assert isinstance(scene.answer(), m.Msg)


def test_a_client_is_not_read_while_the_channel_is_full(scene: Scene) -> None:
    scene.at_edge.full = True
    assert isinstance(scene.ask(c.Que(), scene.key), m.Info)
    assert not scene.client.wire.reading
    scene.client.session.pauseProducing()
    scene.at_edge.full = False
    scene.edge._drained()
    assert not scene.client.wire.reading
    scene.client.session.resumeProducing()
    assert scene.client.wire.reading


def test_an_edge_that_takes_nothing_gets_no_messages(scene: Scene) -> None:
    scene.at_core.full = True
    scene.send()
    assert scene.client.wire.blocks == []
    scene.at_core.full = False
    scene.channel._drained()
    assert isinstance(scene.answer(), m.Msg)


def pings(scene: Scene, count: int) -> None:
    """So many blocks of the client, while it is read from."""
    for _ in range(count):
        assert scene.client.wire.reading
        scene.client.send(scene.client.transmission(c.Ping()))


def test_a_client_is_not_read_while_the_core_has_several_of_its_blocks(scene: Scene) -> None:
    for _ in range(2):
        scene.at_core.hold()
        pings(scene, MOST_UNDER_WAY)
        reading = [scene.client.wire.reading]
        scene.at_core.flow()
        reading.append(scene.client.wire.reading)
        assert reading == [False, True]
        assert len(scene.client.received()) == MOST_UNDER_WAY


def test_blocks_without_an_answer_hold_nobody_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that a proxy is asked for, or whose answers wait for the store."""
    with monkeypatch.context() as patched:
        patched.setattr(Conversation, "process", lambda *arguments: None)
        pings(scene, 20)
    assert set(scene.told()) == {Kind.CARRIED_OUT}
    pings(scene, 20)
    assert len(scene.client.received()) == 20


def answers_at_once(scene: Scene, count: int) -> Callable[[Conversation, object], None]:
    """What has the core answer each block with so many blocks."""

    def process(conversation: Conversation, *others: object) -> None:
        for number in range(count):
            scene.channel._lines[1].send_parts([b"%d" % number])

    return process


def test_a_block_with_many_answers_is_the_last_until_they_are_taken(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in one process, where a client that is full is not read from."""
    client = scene.client
    monkeypatch.setattr(Conversation, "process", answers_at_once(scene, 100))
    scene.at_core.hold()
    pings(scene, MOST_UNDER_WAY - 1)
    client.session.blockReceived(bytes(BLOCK_SIZE))
    scene.at_edge.hold()
    scene.at_core.flow()
    client.session.pauseProducing()
    scene.at_edge.flow()
    assert len(client.wire.blocks) == 100
    assert scene.told()[-1] == Kind.MUCH_SENT
    for blocks in (200, 300, 400):
        scene.at_edge.hold()
        client.session.resumeProducing()
        client.session.pauseProducing()
        scene.at_edge.flow()
        assert len(client.wire.blocks) == blocks
    client.session.resumeProducing()
    assert len(client.wire.blocks) == 400
    assert client.wire.reading


def test_many_answers_to_a_client_that_takes_them(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Conversation, "process", answers_at_once(scene, 100))
    pings(scene, 10)
    assert len(scene.client.wire.blocks) == 1000


def test_a_client_that_leaves_while_its_blocks_wait(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Conversation, "process", answers_at_once(scene, 100))
    scene.client.session.pauseProducing()
    scene.client.send(scene.client.transmission(c.Ping()))
    scene.client.send(scene.client.transmission(c.Ping()))
    scene.client.leave()
    assert len(scene.client.wire.blocks) == 100
    assert scene.sessions.lines() == {}


# -- services


def test_commands_wait_until_the_service_is_accepted(scene: Scene) -> None:
    scene.at_edge.hold()
    client = Client(scene.sessions, service=new_service(), greet=False)
    hello = client.hello()
    client.session.blockReceived(client.seal(hello.hello))
    assert client.wire.blocks == []
    reading = [client.wire.reading]
    scene.at_edge.flow()
    reading.append(client.wire.reading)
    assert reading == [False, True]
    assert len(client.wire.blocks) == 1


def test_a_client_that_leaves_while_its_service_is_looked_for(scene: Scene) -> None:
    scene.at_core.hold()
    client = Client(scene.sessions, service=new_service(), greet=False)
    client.session.blockReceived(client.seal(client.hello().hello))
    client.leave()
    scene.at_core.flow()
    assert client.wire.blocks == []
    assert len(scene.sessions.lines()) == 1


# -- endings


def test_a_client_that_left_is_left_alone(scene: Scene) -> None:
    peer, sender = scene.client.peer, Client(scene.sessions)
    assert peer is not None
    scene.at_edge.hold()
    sender.send(sender.transmission(c.Send(False, b"hello"), scene.ids.sender_id))
    scene.client.leave()
    scene.at_edge.flow()
    assert scene.client.wire.blocks == []
    assert peer.subscriptions == {}


def test_the_core_knows_how_connections_came(scene: Scene) -> None:
    some = [Client(scene.sessions, address=UNIXAddress(None)) for _ in range(2)]
    channel = scene.channel
    assert (channel.connections, channel.connections_by_unix) == (3, 2)
    some[0].leave()
    assert (channel.connections, channel.connections_by_unix) == (2, 1)
    scene.client.leave()
    assert (channel.connections, channel.connections_by_unix) == (1, 1)


def test_without_the_edge_its_clients_are_subscribed_to_nothing(scene: Scene) -> None:
    peer = scene.client.peer
    assert peer is not None
    assert peer.subscriptions
    scene.channel.end()
    scene.channel.end()
    assert peer.subscriptions == {}
    assert scene.sessions.lines() == {}


def test_what_fails_ends_one_connection(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, logged_failures: list[Failure]
) -> None:
    other = Client(scene.sessions)

    def fails(*arguments: object) -> None:
        raise RuntimeError("a fault of the relay")

    with monkeypatch.context() as patched:
        patched.setattr(scene.relay, "process", fails)
        other.send(other.transmission(c.Ping()))
    assert other.wire.closed == "lost"
    assert [failure.type for failure in logged_failures] == [RuntimeError]
    logged_failures.clear()
    assert isinstance(scene.ask(c.Que(), scene.key), m.Info)


def test_what_fails_at_the_edge_ends_one_connection(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, logged_failures: list[Failure]
) -> None:
    other = Client(scene.sessions)

    def fails(*arguments: object) -> None:
        raise ValueError("not what a block holds")

    with monkeypatch.context() as patched:
        patched.setattr(Session, "send_content", fails)
        scene.at_edge.hold()
        other.send(other.transmission(c.Ping()), other.transmission(c.Ping()))
        other.send(other.transmission(c.Ping()))
        scene.at_edge.flow()
    assert other.wire.closed == "aborted"
    assert [failure.type for failure in logged_failures] == [ValueError]
    logged_failures.clear()
    other.leave()
    assert len(scene.sessions.lines()) == 1
    assert isinstance(scene.ask(c.Que(), scene.key), m.Info)


# -- the log


def test_what_an_edge_logs_is_in_the_log_of_the_core(scene: Scene) -> None:
    logged: list[Any] = []
    observe = cast(ILogObserver, logged.append)
    globalLogPublisher.addObserver(observe)
    scene.at_edge.put(Kind.LOG, 0, encode_entry(Level.ERROR, "{not} a format"))
    scene.at_edge.put(Kind.LOG, 0, encode_entry(Level.WARNING, "a warning"))
    globalLogPublisher.removeObserver(observe)
    assert [(event["log_level"], event["text"]) for event in logged] == [
        (LogLevel.error, "{not} a format"),
        (LogLevel.warn, "a warning"),
    ]


def test_only_what_matters_goes_to_the_core(scene: Scene) -> None:
    observer = CoresLog(scene.edge.conduit)
    logged: list[Any] = []
    observe = cast(ILogObserver, logged.append)
    globalLogPublisher.addObserver(observe)
    for level in (LogLevel.debug, LogLevel.info, LogLevel.warn, LogLevel.critical):
        observer({"log_level": level, "log_format": "{what}", "what": level.name})
    globalLogPublisher.removeObserver(observe)
    assert [(event["log_level"], event["text"]) for event in logged] == [
        (LogLevel.warn, "warn"),
        (LogLevel.error, "critical"),
    ]


@pytest.mark.parametrize("frame", [head(3, Kind.START, 0) + b"???", head(MAX_PAYLOAD + 1, 0, 0)])
def test_an_edge_that_fails_says_why(frame: bytes) -> None:
    own, others = pair()
    with others:
        process = subprocess.Popen(
            [sys.executable, "-c", AS_EDGE, str(others.fileno())], pass_fds=[others.fileno()]
        )
    with own, process:
        own.setblocking(True)
        own.sendall(frame)
        said = b""
        while received := own.recv(65536):
            said += received
        assert process.wait() == 1
    assert said[4] == Kind.LOG
    level, text = decode_entry(said[HEAD_SIZE:])
    assert level is Level.ERROR
    assert "not the settings of an edge" in text or "a frame that is too large" in text
