"""Onion services as server endpoints, without a tor; test_endpoints_by_tor.py has one."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import UNIXClientEndpoint, connectProtocol, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort, IStreamServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.protocols.wire import Echo
from zope.interface.verify import verifyObject

from tests.conformance.clients import pause
from tests.coroutines import in_reactor, until
from tests.torcfg.tors import reactor
from torcfg.endpoints import OnionAddress, OnionEndpoint, OnionPort
from torcfg.onion_keys import OnionKey
from torcfg.publishing import State, Status


class Answer(Protocol):
    """Notes what comes."""

    transport: Any

    def __init__(self) -> None:
        self.came: Deferred[bytes] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.came.callback(data)


async def listen(text: str) -> OnionPort:
    """Listens; no tor is there."""
    endpoint = serverFromString(reactor(), text)
    assert verifyObject(IStreamServerEndpoint, endpoint)
    assert isinstance(endpoint, OnionEndpoint)
    port = await endpoint.listen(Factory.forProtocol(Echo))
    assert isinstance(port, OnionPort)
    return port


async def echoes(path: Path) -> None:
    """What is sent to the socket comes back."""
    answer = await connectProtocol(UNIXClientEndpoint(reactor(), str(path)), Answer())
    answer.transport.write(b"hello")
    assert await answer.came == b"hello"
    answer.transport.abortConnection()


async def becomes(port: OnionPort, state: State) -> None:
    """Waits for a state that comes soon."""
    await until(lambda: port.publisher.status.state is state)


def description(directory: Path, more: str = "") -> str:
    control = f"control=unix\\:{directory}/no-tor"
    return f"onionservice:80+443:key={directory}/onion.key:{control}{more}"


@in_reactor
async def test_it_listens_while_tor_is_away(tmp_path: Path) -> None:
    port = await listen(description(tmp_path))
    path = tmp_path / "onion.key.sock"
    assert verifyObject(IListeningPort, port)
    host = port.getHost()
    assert verifyObject(IAddress, host)
    key = OnionKey.decode((tmp_path / "onion.key").read_bytes())
    assert host == OnionAddress(key.address, 80)
    assert (tmp_path / "onion.key").stat().st_mode & 0o777 == 0o600
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    await echoes(path)
    await becomes(port, State.AWAY)
    assert "control socket cannot be reached" in port.publisher.status.detail
    await port.stopListening()
    assert port.publisher.status == Status(State.STOPPED)
    assert list(tmp_path.iterdir()) == [tmp_path / "onion.key"]


@in_reactor
async def test_it_listens_again_by_the_same_name(tmp_path: Path) -> None:
    port = await listen(description(tmp_path))
    await port.stopListening()
    port.startListening()
    await echoes(tmp_path / "onion.key.sock")
    await becomes(port, State.AWAY)
    await port.stopListening()
    again = await listen(description(tmp_path))
    assert again.getHost() == port.getHost()
    # At once, while it is still connecting to tor.
    await again.stopListening()
    assert again.publisher.status == Status(State.STOPPED)
    await again.stopListening()


@in_reactor
async def test_the_socket_is_where_it_shall_be(tmp_path: Path) -> None:
    path = tmp_path / "service"
    with socket.socket(socket.AF_UNIX) as left:
        # A crash leaves the socket, and a lock of a process that is gone.
        left.bind(str(path))
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
        text=True,
        check=True,
    )
    Path(f"{path}.lock").symlink_to(gone.stdout.strip())
    port = await listen(description(tmp_path, f":socket={path}:mode=660"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    await echoes(path)
    await port.stopListening()
    assert not path.exists()


@in_reactor
async def test_relative_paths_are_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    port = await listen("onionservice:80:key=onion.key:control=tcp\\:127.0.0.1\\:1")
    monkeypatch.undo()
    await echoes(tmp_path / "onion.key.sock")
    await port.stopListening()
    assert not (tmp_path / "onion.key.sock").exists()


@in_reactor
async def test_others_may_accept_its_connections(tmp_path: Path) -> None:
    """As edge processes of a relay do."""
    port = await listen(description(tmp_path))
    assert isinstance(port.factory, Factory)
    port.stopReading()
    waiting = connectProtocol(UNIXClientEndpoint(reactor(), f"{tmp_path}/onion.key.sock"), Answer())
    answer = await waiting
    answer.transport.write(b"hello")
    await pause(0.05)
    assert not answer.came.called
    with socket.socket(fileno=os.dup(port.fileno())) as same:
        accepted, _ = same.accept()
        with accepted:
            assert accepted.recv(5) == b"hello"
    answer.transport.abortConnection()
    await port.stopListening()


@in_reactor
async def test_what_cannot_be_used(tmp_path: Path) -> None:
    """It is said in a sentence, and nothing is left behind."""
    key, password = tmp_path / "onion.key", tmp_path / "password"
    good = OnionKey.generate(os.urandom).encode()
    key.touch(0o600)
    password.touch(0o600)
    for content, mode, more, says in (
        (b"nonsense", 0o600, "", f"{key} cannot be used: not a file hs_ed25519_secret_key"),
        (good, 0o640, "", f"{key} may be read by others: make its mode 600"),
        (good, 0o600, f":passwordfile={password}", f"{password} cannot be used: it does not begin"),
        (good, 0o600, f":passwordfile={password}.x", f"{password}.x cannot be read: No such file"),
        (good, 0o600, f":socket={tmp_path}/no/socket", "No such file or directory"),
        (good, 0o600, f":socket={'x' * 100}", "a path of at most 107 ASCII characters"),
    ):
        key.write_bytes(content)
        key.chmod(mode)
        with pytest.raises(CannotListenError) as caught:
            await listen(description(tmp_path, more))
        assert says in str(caught.value)
        assert key.read_bytes() == content
    assert {each.name for each in tmp_path.iterdir()} == {"onion.key", "password"}


@in_reactor
async def test_two_with_one_socket(tmp_path: Path) -> None:
    port = await listen(description(tmp_path))
    with pytest.raises(CannotListenError, match="Address already in use"):
        await listen(description(tmp_path))
    await echoes(tmp_path / "onion.key.sock")
    await maybeDeferred(port.stopListening)


def test_looking_for_endpoints_loads_nothing_of_it() -> None:
    """A program that has no onion service does not pay for it."""
    look = (
        "import sys\n"
        "from twisted.internet.endpoints import serverFromString\n"
        "from twisted.internet.interfaces import IStreamServerEndpointStringParser\n"
        "from twisted.plugin import getPlugins\n"
        "prefixes = {each.prefix for each in getPlugins(IStreamServerEndpointStringParser)}\n"
        "before = any(name.startswith('torcfg') for name in sys.modules)\n"
        "serverFromString(None, 'onionservice:80:key=k')\n"
        "print('onionservice' in prefixes, before, 'torcfg.publishing' in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=False)
    assert run.stdout.split() == ["True", "False", "False"], run.stderr
