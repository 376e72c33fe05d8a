"""Relays that publish themselves as onion services, on a real tor."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.threads import deferToThread

from bench.running import children
from tests.conformance.clients import (
    Connection,
    Relay,
    close_all,
    pause,
)
from tests.conformance.relays import RelayFailedError
from tests.e2e.tor_network import TorNetwork
from tests.torcfg.tors import (
    BY_TOR,
    REACHED,
    OnionRelay,
    comm,
    is_refused,
    reactor,
    smpctl,
    works,
)
from torcfg.onion_keys import OnionKey
from torcfg.tor_process import TorProcess
from txsimplex.addresses import ServerAddress

pytestmark = BY_TOR


@ensureDeferred
async def test_a_relay_without_any_tcp_port(
    network: TorNetwork, user: TorProcess, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It runs its own tor; stopped and started again, it has its address again."""
    directory = tmp_path_factory.mktemp("relay")
    settings = {"tor.control": "own", "tor.include": network.torrc}
    connections: list[Connection] = []
    with OnionRelay(directory, settings) as process:
        relay = Relay(process, connections)
        onion = process.onion
        await works(user, relay, onion.text)
        assert process.listening == set()
        (tor,) = [pid for pid in children(process.pid) if "tor" in comm(pid)]
        await close_all(connections)
        await deferToThread(process.end)
        assert not Path(f"/proc/{tor}").exists()
        await deferToThread(process.start)
        assert process.onion == onion
        await works(user, relay, onion.text)
        await close_all(connections)
        # Killed, it leaves no tor behind.
        (tor,) = [pid for pid in children(process.pid) if "tor" in comm(pid)]
        await deferToThread(process.end, signal.SIGKILL)
        waited = 0.0
        while Path(f"/proc/{tor}").exists():
            assert waited < REACHED
            await pause(0.5)
            waited += 0.5


@ensureDeferred
async def test_a_relay_on_a_tor_that_is_there(
    host: TorProcess, user: TorProcess, tmp_path: Path
) -> None:
    """As with Debian's tor; with edge processes, too, whose socket tor connects to."""
    settings = {"tor.control": f"unix:{host.directory}/control", "server.processes": 2}
    connections: list[Connection] = []
    with OnionRelay(tmp_path, settings) as process:
        await works(user, Relay(process, connections), process.onion.text)
        status = json.loads(
            await deferToThread(smpctl, "--config", str(tmp_path / "smpd.ini"), "status", "--json")
        )
        assert status["connections_by_unix"] == status["connections"] >= len(connections)
        assert (tmp_path / "onion.key").stat().st_mode & 0o777 == 0o600
        assert process.onion.text == OnionKey.decode((tmp_path / "onion.key").read_bytes()).address
        printed = await deferToThread(smpctl, "--config", str(tmp_path / "smpd.ini"), "address")
        assert ServerAddress.parse(printed.strip()).location.hosts == (process.onion,)
        socks = f"{user.directory}/socks"
        tried = await deferToThread(smpctl, "check", printed.strip(), "--socks", socks)
        assert tried.startswith(f"{process.onion}, port 5223, by SOCKS\n")
        assert tried.endswith("The relay does what it should.\n")
        assert not any(line in process.log for line in ("ADD_ONION", "ED25519-V3"))
        await close_all(connections)


@ensureDeferred
async def test_a_private_relay(
    network: TorNetwork, host: TorProcess, user: TorProcess, tmp_path: Path
) -> None:
    """Clients are named and removed while it runs."""
    settings = {"tor.control": f"unix:{host.directory}/control"}
    connections: list[Connection] = []

    async def ctl(*arguments: str) -> str:
        return await deferToThread(smpctl, "--config", str(tmp_path / "smpd.ini"), *arguments)

    async def onion() -> dict[str, Any]:
        status = json.loads(await ctl("status", "--json"))
        (onion,) = status["onion"]
        assert status["connections"] >= len(connections)
        return dict(onion)

    with OnionRelay(tmp_path, settings) as process:
        relay, address = Relay(process, connections), process.onion.text
        while (await onion())["state"] != "published":
            await pause(0.2)
        assert (await onion()) | {"since": 0} == {
            "host": address,
            "state": "published",
            "detail": "",
            "since": 0,
            "clients": None,
        }
        await works(user, relay, address)
        line = await ctl("onion", "clients", "add", "alice")
        for connection in connections:
            await connection.lost()
        connections.clear()
        await is_refused(user, relay, address)
        async with tor_with_line(network, tmp_path / "alice", line) as alice:
            await works(alice, relay, address)
            assert (await onion())["clients"] == 1
            await close_all(connections)
            connections.clear()
            await ctl("onion", "clients", "remove", "alice")
            await is_refused(alice, relay, address)
        assert (await onion())["clients"] == 0
        assert not any(word in process.log for word in ("alice", line.strip().split(":")[-1]))


@asynccontextmanager
async def tor_with_line(
    network: TorNetwork, directory: Path, line: str
) -> AsyncIterator[TorProcess]:
    """The tor of a client, with the line that smpctl has printed for it."""
    keys = directory.with_suffix(".keys")
    keys.mkdir(0o700)
    (keys / "relay.auth_private").write_text(line)
    include = directory.with_suffix(".torrc")
    include.write_text(f"{network.torrc.read_text()}ClientOnionAuthDir {keys}\n")
    tor = TorProcess(reactor(), directory, socks=True, include=include)
    tor.startService()
    try:
        while not (directory / "socks").exists():
            await pause(0.05)
        yield tor
    finally:
        ended = tor.stopService()
        assert ended is not None
        await ended


@ensureDeferred
async def test_a_tor_of_its_own_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RelayFailedError, match="tor is not installed"):
        await deferToThread(OnionRelay(tmp_path, {"tor.control": "own"}).start)


@ensureDeferred
async def test_a_key_that_cannot_be_used(tmp_path: Path) -> None:
    """The relay does not start with another one: the address would be lost."""
    key = tmp_path / "onion.key"
    key.touch(0o600)
    for content, mode, says in (
        (b"nonsense", 0o600, "cannot be used: not a file hs_ed25519_secret_key of tor"),
        (OnionKey.generate(os.urandom).encode(), 0o640, "may be read by others"),
    ):
        key.write_bytes(content)
        key.chmod(mode)
        with pytest.raises(RelayFailedError, match=says):
            await deferToThread(OnionRelay(tmp_path, {}).start)
        assert key.read_bytes() == content
