"""smpctl check, against relays on real sockets."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.utils import getProcessOutputAndValue

from smpd.config import load
from smpd.ctl import run as smpctl
from smpd.ctl.errors import CommandError
from smpd.ctl.trial import Trial
from smpd.tap import RelayService
from tests.coroutines import finish, in_reactor
from txsimplex.addresses import ServerAddress
from txsimplex.boxes import BoxError
from txsimplex.client.queues import CreatedQueue
from txsimplex.client.smp import SMPClient

ROOT = Path(__file__).parents[2]
STEPS = [
    "TCP connection",
    "TLS",
    "handshake",
    "create queue",
    "secure queue",
    "send",
    "receive",
    "acknowledge",
    "delete queue",
]


@dataclass
class Relay:
    """A relay in this process, and what trials of it report."""

    service: RelayService
    address: ServerAddress
    reported: list[tuple[str, str]]

    async def trial(self, address: ServerAddress | None = None, timeout: float = 10) -> list[str]:
        """The names of the steps that went well; raises `CommandError` at the first other."""
        from twisted.internet import reactor

        address = address or self.address
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", int(address.port))
        await Trial(address, endpoint, reactor, timeout, self._report).run()
        return self.steps

    async def failure(self, address: ServerAddress | None = None, timeout: float = 10) -> str:
        with pytest.raises(CommandError) as caught:
            await self.trial(address, timeout)
        return str(caught.value)

    @property
    def steps(self) -> list[str]:
        return [name for name, _ in self.reported]

    def _report(self, name: str, seconds: float, note: str) -> None:
        assert 0 <= seconds < 10
        self.reported.append((name, note))


def at(address: ServerAddress, port: int) -> ServerAddress:
    return replace(address, location=replace(address.location, port=str(port)))


async def stopped(service: RelayService) -> None:
    await service.stopService()


StartRelay = Callable[[str], Relay]


@pytest.fixture
def start_relay(tmp_path: Path) -> Iterator[StartRelay]:
    """Starts a relay whose configuration has some lines of its own."""
    services: list[RelayService] = []

    def start(settings: str) -> Relay:
        assert smpctl(["init", "--directory", str(tmp_path), "--host", "127.0.0.1", "--no-qr"]) == 0
        configuration = tmp_path / "smpd.ini"
        configuration.write_text(
            f"[server]\nhosts = 127.0.0.1\nlisten = tcp:0:interface=127.0.0.1\n{settings}\n"
        )
        service = RelayService(load(configuration))
        service.privilegedStartService()
        service.startService()
        services.append(service)
        (port,) = service.listener.ports
        host: Any = port.getHost()
        address = load(configuration).address(service.sessions.identity.key_hash)
        assert address is not None
        return Relay(service, at(address, host.port), [])

    yield start
    for service in services:
        finish(stopped(service))


@pytest.fixture
def relay(start_relay: StartRelay) -> Relay:
    return start_relay("")


@in_reactor
async def test_all_steps(relay: Relay) -> None:
    assert await relay.trial() == STEPS
    notes = [note for _, note in relay.reported]
    assert notes == ["", "", "fingerprint matches, version 18, encrypted blocks", *[""] * 6]
    assert relay.service.relay.store.queue_count() == 0


@pytest.mark.parametrize(
    ("most", "note"),
    [
        (6, "fingerprint matches, version 6, plain blocks"),
        (10, "fingerprint matches, version 10, plain blocks"),
        (11, "fingerprint matches, version 11, encrypted blocks"),
    ],
)
@in_reactor
async def test_relays_of_lower_versions(start_relay: StartRelay, most: int, note: str) -> None:
    relay = start_relay(f"[protocol]\nmaximum_version = {most}")
    assert await relay.trial() == STEPS
    assert relay.reported[2] == ("handshake", note)


@in_reactor
async def test_the_password_of_the_address(start_relay: StartRelay) -> None:
    relay = start_relay("[queues]\npassword = pä%ss")
    assert relay.address.password == "pä%ss"
    assert await relay.trial() == STEPS
    relay.reported.clear()
    sentence = "create queue: the relay answers AUTH (wrong password, or no new queues allowed)"
    assert await relay.failure(replace(relay.address, password="wrong")) == sentence
    assert await relay.failure(relay.address.without_password()) == sentence
    assert relay.steps == STEPS[:3] * 2


@in_reactor
async def test_no_new_queues(start_relay: StartRelay) -> None:
    relay = start_relay("[queues]\nnew_queues = off")
    assert (await relay.failure()).startswith("create queue: the relay answers AUTH")


@in_reactor
async def test_another_fingerprint(relay: Relay) -> None:
    other = replace(relay.address.location, key_hash=bytes(32))
    sentence = await relay.failure(replace(relay.address, location=other))
    assert sentence == "fingerprint: the chain does not lead to the identity expected"
    assert relay.steps == ["TCP connection", "TLS"]


@in_reactor
async def test_a_port_on_which_nobody_listens(relay: Relay) -> None:
    await maybeDeferred(relay.service.listener.ports.pop().stopListening)
    sentence = await relay.failure()
    assert sentence.startswith("TCP connection: Connection was refused")
    assert relay.steps == []


class Silence(Protocol):
    """Accepts and says nothing."""


@in_reactor
async def test_a_listener_that_never_answers(relay: Relay) -> None:
    from twisted.internet import reactor

    listening: Any = reactor
    port = listening.listenTCP(0, Factory.forProtocol(Silence), interface="127.0.0.1")
    try:
        address = at(relay.address, port.getHost().port)
        assert await relay.failure(address, 1) == "TLS: nothing within 1 seconds"
    finally:
        await port.stopListening()
    assert relay.steps == ["TCP connection"]


Send = Callable[..., Any]
send = SMPClient.send


async def send_another(client: SMPClient, sender_id: bytes, body: bytes, **options: Any) -> None:
    await send(client, sender_id, body[::-1], **options)


async def send_twice(client: SMPClient, sender_id: bytes, body: bytes, **options: Any) -> None:
    await send(client, sender_id, body, **options)
    await send(client, sender_id, body, **options)


async def send_nothing(client: SMPClient, sender_id: bytes, body: bytes, **options: Any) -> None:
    return


async def send_with_no_key(client: SMPClient, sender_id: bytes, body: bytes, **_: Any) -> None:
    await send(client, sender_id, body)


@pytest.mark.parametrize(
    ("sending", "sentence", "steps", "timeout"),
    [
        (send_another, "receive: this is not the message that was sent", 6, 10),
        (send_twice, "acknowledge: the queue has a message that was not sent", 7, 10),
        (send_nothing, "receive: nothing within 2 seconds", 6, 2),
        (send_with_no_key, "send: the relay answers AUTH", 5, 10),
    ],
)
@in_reactor
async def test_a_message_that_goes_wrong(
    relay: Relay,
    monkeypatch: pytest.MonkeyPatch,
    sending: Send,
    sentence: str,
    steps: int,
    timeout: float,
) -> None:
    """The client errs in the relay's place; what it made is deleted all the same."""
    monkeypatch.setattr(SMPClient, "send", sending)
    assert await relay.failure(timeout=timeout) == sentence
    assert relay.steps == STEPS[:steps]
    assert relay.service.relay.store.queue_count() == 0


@in_reactor
async def test_a_message_that_cannot_be_decrypted(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(queue: CreatedQueue, message: object) -> None:
        raise BoxError

    monkeypatch.setattr(CreatedQueue, "open", fail)
    assert await relay.failure() == "receive: the message cannot be decrypted"


@in_reactor
async def test_a_connection_that_is_lost_on_the_way(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lose(client: SMPClient, *arguments: Any, **options: Any) -> None:
        client.abort()
        await client.lost()

    monkeypatch.setattr(SMPClient, "send", lose)
    assert await relay.failure() == "receive: the connection is lost"


async def as_process(address: ServerAddress) -> tuple[int, str, str]:
    """Exit status, output and errors of the command itself."""
    program = "from smpd.ctl import main; main()"
    running: Deferred[tuple[bytes, bytes, int]] = getProcessOutputAndValue(
        sys.executable, ["-c", program, "check", "--timeout", "20", str(address)], path=str(ROOT)
    )
    out, err, status = await running
    return status, out.decode(), err.decode()


@in_reactor
async def test_the_command(relay: Relay) -> None:
    status, out, err = await as_process(relay.address)
    assert (status, err) == (0, "")
    first, *lines, last = out.splitlines()
    assert first == f"127.0.0.1, port {relay.address.port}"
    assert [line[2:18].rstrip() for line in lines] == STEPS
    assert all(line[18:].split()[1] == "ms" for line in lines)
    assert last == "The relay does what it should."


@in_reactor
async def test_the_command_fails(start_relay: StartRelay) -> None:
    relay = start_relay("[queues]\nnew_queues = off")
    status, out, err = await as_process(relay.address)
    assert status == 1
    assert len(out.splitlines()) == 4
    assert err == (
        "smpctl: create queue: the relay answers AUTH (wrong password, or no new queues allowed)\n"
    )
