"""Edge processes, started, replaced and ended: with processes that a test starts and ends."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from typing import Any, cast

import pytest
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, globalLogPublisher
from twisted.python.failure import Failure

from smpd.channel import (
    CHANNEL,
    Decoder,
    Frame,
    Kind,
    Level,
    Start,
    decode_identity,
    encode_entry,
    head,
)
from smpd.conversation import Conversations
from smpd.core import Edges
from tests.smpd.people import new_relay
from tests.smpd.wires import new_identity

START = Start((), 120.0, 128, 6, 18, True, 60.0, 5.0, 8, 2)


class Process:
    """One process, as the core knows it, and its end of the channel."""

    def __init__(self, protocol: Any, child_descriptors: dict[int, int]) -> None:
        self.protocol = protocol
        self.descriptors = child_descriptors
        own = socket.socket(fileno=socket.dup(child_descriptors[CHANNEL]))
        self.channel = own
        self.decoder = Decoder()
        self.signals: list[str] = []
        self.ended = False

    def signalProcess(self, name: str) -> None:
        """Called by the core."""
        if self.ended:
            raise ProcessExitedAlready
        self.signals.append(name)

    def told(self) -> list[Frame]:
        """What the core has said since the last time."""
        try:
            return self.decoder.take(self.channel.recv_into(self.decoder.space()))
        except BlockingIOError:
            return []

    def say(self, kind: Kind, payload: bytes = b"") -> None:
        """Says something about itself."""
        self.channel.send(head(len(payload), kind, 0) + payload)

    def end(self, by: signal.Signals | None = None) -> None:
        """It ends, in order or by a signal."""
        self.ended = True
        self.channel.close()
        how = ProcessDone(0) if by is None else ProcessTerminated(signal=by.value)
        self.protocol.processEnded(Failure(how))


class Reactor(Clock):
    """A clock on which processes are started; what is to be read is read when time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[Process] = []
        self.readers: list[Any] = []
        self.fail = 0

    def spawnProcess(self, protocol: Any, *arguments: Any, **options: Any) -> Process:
        """Called by the core."""
        if self.fail:
            self.fail -= 1
            raise OSError("no memory for a process")
        process = Process(protocol, options["childFDs"])
        self.processes.append(process)
        return process

    def addReader(self, reader: Any) -> None:
        """Called by conduits."""
        self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        """Called by conduits."""
        if reader in self.readers:
            self.readers.remove(reader)

    def removeWriter(self, writer: Any) -> None:
        """Called by conduits."""

    def pass_time(self, seconds: float = 0.0) -> None:
        """Lets everything happen that is due."""
        self.advance(seconds)
        for reader in list(self.readers):
            why = reader.doRead()
            if why:
                reader.connectionLost(Failure(why))
        self.advance(0)


class Scene:
    """Two edges that were started; `events` are what has come to pass."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.conversations = Conversations(new_relay(), self.reactor)
        self.edges = Edges(self.conversations, new_identity(), None, START, self.reactor)
        self.events: list[str] = []
        started = self.edges.run([[20, 21], [22, 21]])
        started.addCallback(lambda result: self.events.append("all listen"))
        self.reactor.pass_time()

    @property
    def processes(self) -> list[Process]:
        """All that were started, the ended ones too."""
        return self.reactor.processes

    def close(self) -> None:
        """Leaves no socket open."""
        for process in self.processes:
            process.channel.close()
        for reader in list(self.reactor.readers):
            reader.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    """One of each."""
    scene = Scene()
    yield scene
    scene.close()


def test_edges_are_told_what_to_do(scene: Scene) -> None:
    first, second = scene.processes
    assert [each.descriptors[4] for each in (first, second)] == [20, 22]
    assert [each.descriptors[5] for each in (first, second)] == [21, 21]
    for process in (first, second):
        start, identity, ping = process.told()
        assert (start[0], identity[0], ping[0]) == (Kind.START, Kind.IDENTITY, Kind.PING)
        assert Start.decode(start[2]).listening == (4, 5)
        assert decode_identity(identity[2]).key_hash == scene.edges.identity.key_hash


def test_the_relay_is_ready_when_all_listen(scene: Scene) -> None:
    first, second = scene.processes
    first.say(Kind.LISTENING)
    scene.reactor.pass_time()
    assert scene.events == []
    second.say(Kind.LISTENING)
    scene.reactor.pass_time()
    assert scene.events == ["all listen"]


def test_a_new_certificate_is_shown_by_all(scene: Scene) -> None:
    other = new_identity()
    for process in scene.processes:
        process.told()
    scene.edges.show(other, None)
    scene.reactor.pass_time()
    for process in scene.processes:
        ((kind, _, payload),) = process.told()
        assert kind == Kind.IDENTITY
        assert decode_identity(payload).key_hash == other.key_hash
    scene.processes[0].end(signal.SIGKILL)
    scene.reactor.pass_time()
    assert decode_identity(scene.processes[2].told()[1][2]).key_hash == other.key_hash


def test_an_edge_that_ends_is_replaced_at_once_and_then_later_and_later(scene: Scene) -> None:
    reactor = scene.reactor
    delays = []
    for _ in range(8):
        before = reactor.seconds()
        count = len(scene.processes)
        scene.processes[-1].end(signal.SIGSEGV)
        reactor.pass_time()
        while len(scene.processes) == count:
            reactor.pass_time(0.5)
        delays.append(reactor.seconds() - before)
    assert delays == [0, 1, 2, 4, 8, 16, 30, 30]
    assert scene.processes[-1].descriptors[4] == 22
    reactor.pass_time(61)
    scene.processes[-1].end(signal.SIGSEGV)
    reactor.pass_time()
    assert len(scene.processes) == 11


def test_an_edge_that_fails_has_said_why(scene: Scene) -> None:
    """Even if the core notices its end first."""
    logged: list[Any] = []
    observe = cast(ILogObserver, logged.append)
    globalLogPublisher.addObserver(observe)
    scene.processes[0].say(Kind.LOG, encode_entry(Level.ERROR, "this is why"))
    scene.processes[0].end(signal.SIGKILL)
    globalLogPublisher.removeObserver(observe)
    assert [event.get("text") for event in logged] == ["this is why", None]


def pass_seconds(scene: Scene, seconds: int, *answering: Process, step: int = 1) -> None:
    """Time goes by, and these edges answer what they are asked."""
    for _ in range(seconds // step):
        scene.reactor.pass_time(step)
        for process in answering:
            if any(kind == Kind.PING for kind, _, _ in process.told()):
                process.say(Kind.PONG)


def test_an_edge_that_does_not_answer_is_ended(scene: Scene) -> None:
    first, second = scene.processes
    pass_seconds(scene, 25, second)
    assert first.signals == []
    pass_seconds(scene, 15, second)
    assert (first.signals, second.signals) == (["KILL"], [])
    first.end(signal.SIGKILL)
    scene.reactor.pass_time()
    third = scene.processes[2]
    pass_seconds(scene, 300, second, third)
    assert second.signals == third.signals == []


def test_an_edge_that_answers_late_is_not_ended(scene: Scene) -> None:
    """It has had much to do. Whatever it says counts."""
    for _ in range(10):
        pass_seconds(scene, 25)
        for process in scene.processes:
            process.say(Kind.LISTENING)
    assert [process.signals for process in scene.processes] == [[], []]


def test_only_time_in_which_the_core_has_run_counts(scene: Scene) -> None:
    """Whoever stops the core may have stopped its edges, and whoever is busy hears nothing."""
    pass_seconds(scene, 3600, step=60)
    pass_seconds(scene, 400, step=8)
    assert [process.signals for process in scene.processes] == [[], []]


def test_an_edge_that_cannot_be_started_is_tried_again(scene: Scene) -> None:
    scene.reactor.fail = 2
    scene.processes[0].end(signal.SIGKILL)
    scene.reactor.pass_time()
    scene.reactor.pass_time(1)
    assert len(scene.processes) == 2
    scene.reactor.pass_time(2)
    assert len(scene.processes) == 3


def test_an_edge_that_closes_its_channel_has_to_end(scene: Scene) -> None:
    first, second = scene.processes
    first.channel.close()
    scene.reactor.pass_time()
    assert first.signals == []
    scene.reactor.pass_time(3)
    assert first.signals == ["KILL"]
    second.channel.close()
    scene.reactor.pass_time()
    second.end()
    scene.reactor.pass_time(3)
    assert second.signals == []
    assert scene.processes[2].signals == []


def test_a_stop_in_order(scene: Scene) -> None:
    events: list[str] = []
    first, second = scene.processes
    for process in (first, second):
        process.told()
    scene.edges.stop_accepting().addCallback(lambda result: events.append("stopped"))
    scene.reactor.pass_time()
    assert [process.told() for process in (first, second)] == [[(Kind.STOP_LISTENING, 0, b"")]] * 2
    first.say(Kind.STOPPED)
    scene.reactor.pass_time()
    assert events == []
    second.say(Kind.STOPPED)
    scene.reactor.pass_time()
    assert events == ["stopped"]
    scene.edges.close_all(5).addCallback(lambda result: events.append("closed"))
    scene.reactor.pass_time()
    assert [process.told() for process in (first, second)] == [[(Kind.CLOSE, 0, b"")]] * 2
    first.end()
    assert events == ["stopped"]
    second.end()
    assert events == ["stopped", "closed"]
    scene.reactor.pass_time(100)
    assert len(scene.processes) == 2
    assert first.signals == second.signals == []


def test_a_stop_does_not_wait_for_ever(scene: Scene) -> None:
    events: list[str] = []
    scene.edges.stop_accepting().addCallback(lambda result: events.append("stopped"))
    scene.reactor.pass_time(3)
    assert events == ["stopped"]
    scene.edges.close_all(5).addCallback(lambda result: events.append("closed"))
    scene.reactor.pass_time(6)
    assert [process.signals for process in scene.processes] == [[], []]
    scene.reactor.pass_time(2)
    assert [process.signals for process in scene.processes] == [["KILL"], ["KILL"]]
    for process in scene.processes:
        process.end(signal.SIGKILL)
    assert events == ["stopped", "closed"]


def test_a_stop_while_an_edge_is_missing(scene: Scene) -> None:
    events: list[str] = []
    for _ in range(2):
        scene.processes[-1].end(signal.SIGKILL)
        scene.reactor.pass_time()
    scene.edges.stop_accepting().addCallback(lambda result: events.append("stopped"))
    scene.processes[0].say(Kind.STOPPED)
    scene.reactor.pass_time()
    scene.edges.close_all(5).addCallback(lambda result: events.append("closed"))
    scene.processes[0].end()
    scene.reactor.pass_time(100)
    assert events == ["stopped", "closed"]
    assert len(scene.processes) == 3
