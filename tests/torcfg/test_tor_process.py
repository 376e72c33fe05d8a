"""The configuration of a tor of one's own; test_reached_by_tor.py runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from torcfg.tor_process import torrc

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
