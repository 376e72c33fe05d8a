"""One tor that the relay runs itself: for its onion service, its proxy, or both."""

from __future__ import annotations

from pathlib import Path

import pytest
from twisted.internet.testing import MemoryReactorClock

from smpd.config import Settings, parse
from smpd.credentials import CredentialsError
from smpd.own_tor import own_tor
from smpd.proxying import exposure, network
from torcfg.tor_process import torrc
from txsimplex.addresses import Host, RelayLocation
from txsimplex.client.network import for_each_relay

SERVICE = "[tor]\nonion = on\ncontrol = own\n"
PROXY = "[proxy]\nsocks_proxy = own\n"
HERE = Path("/var/lib/smpd")
ONION = "a" * 56 + ".onion"


def settings(text: str) -> Settings:
    return parse(text, "smpd.ini", HERE)


@pytest.fixture
def tor_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of its name, which nobody runs."""
    program = tmp_path / "tor"
    program.touch(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.usefixtures("tor_is_installed")
@pytest.mark.parametrize(
    ("text", "socks", "single_hop"),
    [
        (SERVICE, False, False),
        (SERVICE + "single_hop = on\n", False, True),
        (SERVICE + PROXY, True, False),
        (PROXY, True, False),
        (PROXY + "[tor]\nonion = on\n", True, False),
        (PROXY + "[tor]\nonion = on\nsingle_hop = on\n", True, False),
        (PROXY + "[tor]\ncontrol = own\n", True, False),
        (SERVICE + PROXY + "enabled = off\n", False, False),
    ],
)
def test_what_it_is_run_for(text: str, *, socks: bool, single_hop: bool) -> None:
    """single_hop is for the tor of the service, which may be another."""
    tor = own_tor(settings(text), MemoryReactorClock())
    assert tor is not None
    assert tor._torrc == torrc(HERE / "tor", socks=socks, single_hop=single_hop)
    assert f"SocksPort unix:{tor.socks}\n" in torrc(HERE / "tor", socks=True, single_hop=False)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[tor]\nonion = on\n",
        "[tor]\ncontrol = own\n",
        PROXY + "enabled = off\n",
        "[proxy]\nsocks_proxy = 127.0.0.1:9050\n",
    ],
)
def test_where_none_is_needed(text: str) -> None:
    assert own_tor(settings(text), MemoryReactorClock()) is None


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (SERVICE, "[tor] control"),
        (SERVICE + PROXY, "[tor] control"),
        (PROXY, "[proxy] socks_proxy"),
    ],
)
def test_tor_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, key: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CredentialsError) as caught:
        own_tor(settings(text), MemoryReactorClock())
    assert str(caught.value) == f"{key} = own: tor is not installed (Debian: tor)"


@pytest.mark.usefixtures("tor_is_installed")
@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("directory = /my tor", "'/my tor' has a character that a torrc cannot hold"),
        ("directory = /srv/ü", "'/srv/ü' has a character that is not ASCII"),
        ("include = /my lines", "'/my lines' has a character that a torrc cannot hold"),
        (f"directory = /{99 * 'x'}", "the path of tor's directory has more than 99 bytes"),
    ],
)
def test_paths_that_a_tor_of_its_own_cannot_have(line: str, says: str) -> None:
    with pytest.raises(CredentialsError) as caught:
        own_tor(settings(f"{PROXY}[tor]\n{line}\n"), MemoryReactorClock())
    assert str(caught.value) == f"the relay cannot run its own tor: {says}"


@pytest.mark.usefixtures("tor_is_installed")
def test_the_proxy_connects_to_its_socket() -> None:
    given = settings(PROXY)
    way = network(given.proxy, own_tor(given, MemoryReactorClock())).socks
    assert way is not None
    assert way.endpoint(MemoryReactorClock())._path == "/var/lib/smpd/tor/socks"  # type: ignore[attr-defined]
    isolation = for_each_relay(b"secret")
    names = {isolation(RelayLocation((Host.parse(ONION),), port, bytes(32))).name for port in "12"}
    assert len(names) == 2


# -- a relay that Tor hides


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        (SERVICE, True),
        (SERVICE + PROXY, True),
        (SERVICE + PROXY + "socks_mode = always", False),
        (SERVICE + "[proxy]\nenabled = off", False),
        (SERVICE + "single_hop = on", False),
        (SERVICE + "[server]\nhosts = smp.example.com", False),
        ("", False),
    ],
)
def test_a_proxy_that_shows_where_a_hidden_relay_is(text: str, *, warned: bool) -> None:
    warning = exposure(settings(text))
    assert (warning is not None) is warned
    if warning is not None:
        assert "socks_proxy = own and socks_mode = always in [proxy]" in warning
