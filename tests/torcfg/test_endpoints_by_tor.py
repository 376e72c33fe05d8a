"""Endpoints that are onion services, on a real tor."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred, TimeoutError as TookTooLong
from twisted.internet.endpoints import connectProtocol, serverFromString
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.threads import deferToThread
from twisted.protocols.wire import Echo

from tests.conformance.clients import Connection, Relay, close_all, pause
from tests.coroutines import until
from tests.torcfg.test_endpoints import Answer
from tests.torcfg.tors import (
    ATTEMPT,
    BY_TOR,
    REACHED,
    EndpointRelay,
    alone,
    control_of,
    onion_endpoint,
    reactor,
    smpctl,
    through_tor,
    use_key,
    with_password,
    works,
)
from torcfg.client_files import ClientFiles
from torcfg.client_keys import ClientKey
from torcfg.endpoints import OnionPort
from torcfg.publishing import State
from torcfg.tor_process import TorProcess
from txsimplex.addresses import ServerAddress
from txsimplex.client.socks import SocksError

pytestmark = BY_TOR


@pytest.mark.parametrize("processes", [1, 2])
@ensureDeferred
async def test_a_relay_is_reached_by_its_endpoint(
    host: TorProcess, user: TorProcess, tmp_path: Path, processes: int
) -> None:
    connections: list[Connection] = []
    with EndpointRelay(tmp_path, host, {"server.processes": processes}) as process:
        # A tor that asks too early remembers for a while that there was nothing.
        await until(lambda: "the onion service: published" in process.log, REACHED)
        await works(user, Relay(process, connections), process.onion.text)
        assert process.listening == set()
        printed = await deferToThread(smpctl, "--config", str(tmp_path / "smpd.ini"), "address")
        assert ServerAddress.parse(printed.strip()).location.hosts == (process.onion,)
        assert not any(line in process.log for line in ("ADD_ONION", "ED25519-V3"))
        await close_all(connections)
        await deferToThread(process.end)
        assert not (tmp_path / "onion.key.sock").exists()


async def reached(user: TorProcess, address: str) -> Answer:
    """A connection by Tor, after as many attempts as it takes."""
    deadline = time.monotonic() + REACHED
    while True:
        attempt: Deferred[Answer] = connectProtocol(through_tor(user, address), Answer())
        try:
            return await attempt.addTimeout(ATTEMPT, reactor())
        except (SocksError, ConnectError, TookTooLong):
            if time.monotonic() > deadline:
                raise
            await pause(0.5)


@ensureDeferred
async def test_any_program_is_reached_by_its_endpoint(
    host: TorProcess, user: TorProcess, tmp_path: Path
) -> None:
    """First by a client that is named only, then by everybody."""
    clients, key = ClientFiles(tmp_path / "clients"), ClientKey.generate(os.urandom)
    clients.add("alice", key.public)
    text = f"{onion_endpoint(tmp_path, host)}:streams=8:clients={clients.directory}"
    endpoint: IStreamServerEndpoint = serverFromString(reactor(), text)
    port = await endpoint.listen(Factory.forProtocol(Echo))
    assert isinstance(port, OnionPort)
    await until(lambda: port.publisher.status.state is State.PUBLISHED, REACHED)
    address = port.getHost().host
    with pytest.raises(SocksError):
        await connectProtocol(through_tor(user, address), Answer())
    control = await control_of(user)
    await use_key(control, address, key)
    await echoes(user, address)
    await control.queue_command(f"ONION_CLIENT_AUTH_REMOVE {address.removesuffix('.onion')}")
    control.transport.abortConnection()
    clients.remove_all()
    await port.publisher.republish()
    await echoes(user, address)
    await port.stopListening()


async def echoes(user: TorProcess, address: str) -> None:
    """What is sent by Tor comes back."""
    answer = await reached(user, address)
    answer.transport.write(b"hello")
    assert await answer.came == b"hello"
    answer.transport.abortConnection()


@pytest.mark.usefixtures("need_tor")
@ensureDeferred
async def test_a_password_is_in_a_file(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.touch(0o600)
    password.write_text("secret\n")
    async with alone(tmp_path / "tor", *with_password("secret")) as tor:
        text = f"{onion_endpoint(tmp_path, tor)}:passwordfile={password}"
        port = await serverFromString(reactor(), text).listen(Factory.forProtocol(Echo))
        await until(lambda: port.publisher.status.state is State.BOOTSTRAPPING, REACHED)
        await port.stopListening()
