"""The configuration of a tor of one's own; test_reached_by_tor.py runs it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXServerEndpoint
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher

from tests.coroutines import in_reactor, sleep
from torcfg import tor_process
from torcfg.tor_process import TorProcess, torrc

HERE = Path("/var/lib/smpd/tor")


def test_a_tor_for_services_only() -> None:
    lines = torrc(HERE, socks=False, single_hop=False).splitlines()
    assert "SocksPort 0" in lines
    assert "Log warn stdout" in lines
    assert "ControlSocket /var/lib/smpd/tor/control" in lines
    assert "CookieAuthFile /var/lib/smpd/tor/control_auth_cookie" in lines
    assert not any(line.startswith("HiddenService") for line in lines)


def test_a_tor_that_reaches_others_too() -> None:
    lines = torrc(HERE, socks=True, single_hop=False).splitlines()
    assert "SocksPort unix:/var/lib/smpd/tor/socks" in lines
    # Of what it is asked for, nothing gets into the log.
    assert "Log [~app]warn stdout" in lines


def test_a_tor_that_hides_nothing() -> None:
    text = torrc(HERE, socks=False, single_hop=True, include=Path("/etc/smpd/torrc"))
    assert text.endswith(
        "HiddenServiceNonAnonymousMode 1\nHiddenServiceSingleHopMode 1\n%include /etc/smpd/torrc\n"
    )
    with pytest.raises(ValueError, match="no SOCKS port"):
        torrc(HERE, socks=True, single_hop=True)


@pytest.mark.parametrize(
    "path", ["/a b", '/"a"', "/a#b", "/a\\b", "/a\nLog debug", "/" + "a" * 100]
)
def test_places_that_a_torrc_cannot_hold(path: str) -> None:
    with pytest.raises(ValueError, match=r"a torrc cannot hold|has more than 99 bytes"):
        torrc(Path(path), socks=False, single_hop=False)


def test_further_lines_that_a_torrc_cannot_name() -> None:
    with pytest.raises(ValueError, match="a torrc cannot hold"):
        torrc(HERE, socks=False, single_hop=False, include=Path("/etc/my torrc"))


@pytest.mark.parametrize(
    ("line", "level", "text"),
    [
        ("Nov 27 19:35:23.471 [warn] Tor is old.", LogLevel.warn, "tor: Tor is old."),
        ("Nov  7 09:35:23.471 [err] No [space] left", LogLevel.error, "tor: No [space] left"),
        ("Nov 27 19:35:23.471 [notice] Hello", LogLevel.info, "tor: Hello"),
        ("something else", LogLevel.warn, "tor: something else"),
    ],
)
def test_what_it_says_is_logged_without_a_second_date(
    tmp_path: Path, line: str, level: object, text: str
) -> None:
    events: list[LogEvent] = []
    globalLogPublisher.addObserver(events.append)  # type: ignore[arg-type]
    try:
        TorProcess(None, tmp_path).said(line)
    finally:
        globalLogPublisher.removeObserver(events.append)  # type: ignore[arg-type]
    (event,) = events
    assert (event["log_level"], formatEvent(event)) == (level, text)


@in_reactor
async def test_connecting_waits_for_a_tor_that_starts(tmp_path: Path) -> None:
    from twisted.internet import reactor

    class Started(TorProcess):
        pid = os.getpid()

    factory = Factory.forProtocol(Protocol)
    connecting = Started(reactor, tmp_path).control.connect(factory)
    await sleep(0.3)
    assert not connecting.called
    server = UNIXServerEndpoint(reactor, str(tmp_path / "control"))
    port = await server.listen(Factory.forProtocol(Protocol))
    protocol: Any = await connecting
    protocol.transport.abortConnection()
    stopped: Deferred[None] = port.stopListening()
    await stopped


@in_reactor
async def test_connecting_does_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from twisted.internet import reactor

    monkeypatch.setattr(tor_process, "START_TIME", 0.2)
    with pytest.raises(ConnectError):
        await TorProcess(reactor, tmp_path).control.connect(Factory.forProtocol(Protocol))
    given_up = TorProcess(reactor, tmp_path).control.connect(Factory.forProtocol(Protocol))
    given_up.addErrback(lambda failure: None)
    given_up.cancel()
