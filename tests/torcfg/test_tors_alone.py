"""Real tors that publish nothing: without a network, a password, or that cannot start."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_twisted import ensureDeferred
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint, clientFromString
from twisted.internet.interfaces import IProtocol, IProtocolFactory

from bench.running import children
from tests.conformance import ROOT
from tests.conformance.clients import pause
from tests.e2e.tor_network import free_ports
from tests.torcfg.tors import (
    BY_TOR,
    NOWHERE,
    alone,
    comm,
    logged,
    publish,
    reactor,
    with_password,
    without_network,
)
from torcfg import tor_process
from torcfg.control_connections import ANSWER_TIME
from torcfg.onion_keys import OnionKey
from torcfg.publishing import OnionPublisher, State, Status
from torcfg.tor_process import TorProcess

pytestmark = BY_TOR

ANOTHER = """
import sys
from pathlib import Path
from twisted.internet import reactor
from torcfg.tor_process import TorProcess
tor = TorProcess(reactor, Path(sys.argv[1]), include=Path(sys.argv[2]))
reactor.callWhenRunning(tor.startService)
reactor.run()
"""
"""A relay, as far as its tor is concerned: until it is killed."""


def has_ended(pid: int) -> bool:
    """Whether a process is no more, or nothing but its number, which nobody has asked for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def children_named_tor(pid: int) -> list[int]:
    """The tors that a process runs."""
    return [child for child in children(pid) if comm(child).strip() == "tor"]


@pytest.mark.usefixtures("need_tor")
@ensureDeferred
async def test_a_tor_without_a_network(tmp_path: Path) -> None:
    async with alone(tmp_path / "tor") as tor, publish(tor, NOWHERE) as service:
        await service.becomes(State.BOOTSTRAPPING)
        assert service.publisher.status.detail == "0 %"


@pytest.mark.usefixtures("need_tor")
@ensureDeferred
async def test_there_is_no_tor(tmp_path: Path) -> None:
    """It is said once, and tried again."""
    tor = TorProcess(reactor(), tmp_path / "tor", include=without_network(tmp_path / "tor"))
    async with publish(tor, NOWHERE) as service:
        await service.becomes(State.AWAY)
        assert "control socket cannot be reached" in service.publisher.status.detail
        tor.startService()
        await service.becomes(State.BOOTSTRAPPING)
        ended = tor.stopService()
        assert ended is not None
        await ended


@pytest.mark.usefixtures("need_tor")
@pytest.mark.parametrize(("given", "gets_in"), [("secret", True), ("wrong", False), (None, False)])
@ensureDeferred
async def test_a_password(tmp_path: Path, given: str | None, *, gets_in: bool) -> None:
    async with (
        alone(tmp_path / "tor", *with_password("secret")) as tor,
        publish(tor, NOWHERE, password=given) as service,
    ):
        if gets_in:
            await service.becomes(State.BOOTSTRAPPING)
        else:
            while not any("does not let us in" in each.detail for each in service.said):
                await pause(0.05)
        assert not any("secret" in str(each) or "wrong" in str(each) for each in service.said)


@ensureDeferred
async def test_attempts_that_change_nothing_are_not_told_of(tmp_path: Path) -> None:
    """It is away since the first one, for as many clients as before."""
    said: list[Status] = []
    attempts: list[None] = []

    class Nowhere(UNIXClientEndpoint):
        def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
            attempts.append(None)
            connecting: Deferred[IProtocol] = super().connect(protocolFactory)
            return connecting

    publisher = OnionPublisher(
        reactor(),
        Nowhere(reactor(), str(tmp_path / "control")),
        OnionKey.generate(os.urandom),
        NOWHERE,
        changed=said.append,
    )
    publisher.startService()
    while len(attempts) < 3:
        await pause(0.05)
    assert [status.state for status in said] == [State.CONNECTING, State.AWAY]
    assert reactor().seconds() - publisher.status_since > 1
    assert publisher.clients is None
    ended = publisher.stopService()
    assert ended is not None
    await ended


@pytest.mark.usefixtures("need_tor")
@pytest.mark.parametrize("password", [None, "secret"])
@ensureDeferred
async def test_a_control_port(tmp_path: Path, password: str | None) -> None:
    """With tor's cookie, or with its password."""
    (port,) = free_ports(1)
    lines = with_password(password) if password else ()
    async with alone(tmp_path / "tor", f"ControlPort 127.0.0.1:{port}", *lines) as tor:
        while tor.pid is None or not (tmp_path / "tor/control").exists():
            await pause(0.05)
        control = clientFromString(reactor(), f"tcp:127.0.0.1:{port}")
        publisher = OnionPublisher(
            reactor(), control, OnionKey.generate(os.urandom), NOWHERE, password=password
        )
        publisher.startService()
        while publisher.status.state is not State.BOOTSTRAPPING:
            assert publisher.status.state is not State.AWAY, publisher.status
            await pause(0.05)
        ended = publisher.stopService()
        assert ended is not None
        await ended


@pytest.mark.usefixtures("need_tor")
@ensureDeferred
async def test_a_tor_that_cannot_start_is_tried_again(tmp_path: Path) -> None:
    lines: list[str] = []

    class Watched(TorProcess):
        def said(self, line: str) -> None:
            lines.append(line)

    tor = Watched(
        reactor(), tmp_path / "tor", include=without_network(tmp_path / "tor", "NoSuchOption 1")
    )
    tor.startService()
    while sum("NoSuchOption" in line for line in lines) < 2:
        await pause(0.05)
    ended = tor.stopService()
    if ended is not None:
        await ended
    assert tor.pid is None


@pytest.mark.usefixtures("need_tor")
@ensureDeferred
async def test_the_files_of_a_tor_are_for_nobody_else(tmp_path: Path) -> None:
    async with alone(tmp_path / "tor") as tor, publish(tor, NOWHERE) as service:
        await service.becomes(State.BOOTSTRAPPING)
        assert (tmp_path / "tor").stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "tor/torrc").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("program", "place", "says"),
    [
        ("/nonexistent/tor", "tor", "there is no program /nonexistent/tor"),
        ("true", "file/tor", "its files cannot be written: {}/file/tor: Not a directory"),
        ("false", "tor", "exit code 1"),
    ],
)
@ensureDeferred
async def test_a_tor_that_cannot_be_started(
    tmp_path: Path, program: str, place: str, says: str
) -> None:
    """That is said in a line, and tried again."""
    (tmp_path / "file").touch()
    tor = TorProcess(reactor(), tmp_path / place, program=program)
    with logged() as lines:
        tor.startService()
        # Before it is started again, half a second later.
        while not any(line.startswith("tor: ") for line in lines):
            await pause(0.02)
        ended = tor.stopService()
        if ended is not None:
            await ended
    assert tor.pid is None
    (line,) = (line for line in lines if line.startswith("tor: "))
    assert says.format(tmp_path) in line
    assert line.endswith("; it is started again later")


@pytest.mark.usefixtures("need_tor")
@pytest.mark.parametrize("by_kernel", [True, False])
@ensureDeferred
async def test_after_a_relay_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, by_kernel: bool
) -> None:
    """Its tor ends, too; the next one waits for that, and keeps its sockets."""
    if not by_kernel:
        # Without setpriv its tor notices by itself, but later.
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin/tor").symlink_to(shutil.which("tor") or "")
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    directory = tmp_path / "tor"
    include = without_network(directory)
    command = (sys.executable, "-c", ANOTHER, str(directory), str(include))
    with subprocess.Popen(command, cwd=ROOT) as relay:
        try:
            while (
                not (tors := children_named_tor(relay.pid)) or not (directory / "control").exists()
            ):
                await pause(0.05)
        finally:
            relay.kill()
    (left,) = tors
    with logged() as lines:
        async with alone(directory) as tor, publish(tor, NOWHERE) as service:
            if not by_kernel:
                await pause(1.0)
                assert any("another tor has not ended yet" in line for line in lines)
                assert tor.pid is None
                os.kill(left, signal.SIGTERM)
            await service.becomes(State.BOOTSTRAPPING)
            assert has_ended(left)
            assert tor.pid is not None
            # Longer than the one before would have taken to remove them.
            await pause(1.0)
            assert service.publisher.status.state is State.BOOTSTRAPPING
            assert (directory / "control").is_socket()


@pytest.mark.usefixtures("need_tor")
@ensureDeferred
async def test_a_control_socket_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has removed it: there is no other way to have it again."""
    monkeypatch.setattr(tor_process, "START_TIME", 0.5)
    monkeypatch.setattr(tor_process, "SOCKET_TIME", 1.0)
    async with alone(tmp_path / "tor") as tor:
        while not (tmp_path / "tor/control").exists():
            await pause(0.05)
        before = tor.pid
        (tmp_path / "tor/control").unlink()
        async with publish(tor, NOWHERE) as service:
            await service.becomes(State.BOOTSTRAPPING)
            assert tor.pid not in (None, before)


@pytest.mark.usefixtures("need_tor")
@ensureDeferred
async def test_a_tor_that_ends_while_it_is_waited_for(tmp_path: Path) -> None:
    """That is noticed at once, and not only when tor would have had to answer."""
    directory = tmp_path / "tor"
    tor = TorProcess(reactor(), directory, include=without_network(directory))
    tor.startService()
    async with publish(tor, NOWHERE) as service:
        await service.becomes(State.BOOTSTRAPPING)
        since = reactor().seconds()
        ended = tor.stopService()
        assert ended is not None
        await ended
        await service.becomes(State.AWAY)
        assert reactor().seconds() - since < ANSWER_TIME / 2
        away = next(each for each in service.said if each.state is State.AWAY)
        assert away.detail == "tor has closed the control connection"
