"""smpctl onion: the key of an onion service is made, shown, saved, brought in and changed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from smpd import ctl
from smpd.config import load
from smpd.endpoints import onion_target
from smpd.onion import onion_host
from smpd.proxying import exposure
from smpd.tap import Options, RelayService, makeService
from torcfg.key_files import kept_key
from torcfg.onion_keys import OnionKey
from txsimplex.addresses import ServerAddress

Answer = tuple[int, str, str]


class Relay:
    """A relay that may be an onion service, and `smpctl onion` for it."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self.key = directory / "onion.key"
        self._capsys = capsys
        (directory / "smpd.ini").write_text("[tor]\nonion = on\n")

    def __call__(self, *arguments: str | Path) -> Answer:
        """Status, output and complaint."""
        configuration = ("--config", str(self.directory / "smpd.ini"))
        status = ctl.run([*configuration, "onion", *map(str, arguments)])
        return (status, *self._capsys.readouterr())


@pytest.fixture
def relay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Relay:
    return Relay(tmp_path, capsys)


def stored(path: Path) -> OnionKey:
    """The key in a file that nobody else may read."""
    assert path.stat().st_mode & 0o777 == 0o600
    return OnionKey.decode(path.read_bytes())


def test_a_new_key(relay: Relay) -> None:
    status, name, complaint = relay("new")
    assert (status, complaint) == (0, "")
    assert name == f"{stored(relay.key).address}\n"
    assert relay("show") == (0, name, "")


def test_there_is_no_key(relay: Relay, tmp_path: Path) -> None:
    says = f"smpctl: {relay.key} is not there: the first start makes it\n"
    for arguments in (("show",), ("rotate",), ("backup", tmp_path / "saved")):
        assert relay(*arguments) == (1, "", says)
    assert not (tmp_path / "saved").exists()


def test_no_key_is_overwritten(relay: Relay, tmp_path: Path) -> None:
    relay("new")
    key, other = stored(relay.key), tmp_path / "other"
    other.write_bytes(OnionKey.generate(os.urandom).encode())
    for arguments in (("new",), ("restore", other)):
        status, output, complaint = relay(*arguments)
        assert (status, output) == (1, "")
        assert complaint.startswith(f"smpctl: {relay.key} is there already")
    assert stored(relay.key) == key


def test_saved_and_brought_back(relay: Relay, tmp_path: Path) -> None:
    _, name, _ = relay("new")
    saved = tmp_path / "saved"
    assert relay("backup", saved) == (0, name, "")
    assert relay("backup", saved) == (1, "", f"smpctl: {saved} is there already\n")
    assert stored(saved) == stored(relay.key)
    # The same once more is no fault.
    assert relay("restore", saved) == (0, name, "")
    relay.key.unlink()
    assert relay("restore", saved) == (0, name, "")
    assert stored(relay.key) == stored(saved)


def test_a_service_that_was_tors_own(relay: Relay, tmp_path: Path) -> None:
    key, service = OnionKey.generate(os.urandom), tmp_path / "simplex-smp"
    service.mkdir()
    (service / "hs_ed25519_secret_key").write_bytes(key.encode())
    assert relay("restore", service) == (0, f"{key.address}\n", "")
    assert stored(relay.key) == key


def test_another_key(relay: Relay) -> None:
    relay("new")
    former = stored(relay.key)
    status, name, _ = relay("rotate")
    assert (status, name) == (0, f"{stored(relay.key).address}\n")
    assert stored(relay.key) != former
    assert stored(relay.directory / f"onion.key.{former.address[:8]}") == former


def test_what_is_no_key(relay: Relay, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_bytes(b"nonsense")
    says = f"smpctl: {wrong} cannot be used: not a file hs_ed25519_secret_key of tor\n"
    assert relay("restore", wrong) == (1, "", says)
    assert not relay.key.exists()


def test_a_key_for_everybody_to_read(relay: Relay) -> None:
    relay("new")
    relay.key.chmod(0o644)
    says = f"smpctl: {relay.key} may be read by others: make its mode 600\n"
    assert relay("show") == (1, "", says)


@pytest.mark.parametrize("host", ["smp.example.com", None, "a.onion"])
def test_a_relay_that_is_made_as_an_onion_service(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], host: str | None
) -> None:
    directory = tmp_path / "a:relay=x"
    hosts = [] if host is None else ["--host", host]
    command = ["init", "--directory", str(directory), "--onion", "--no-qr"]
    assert ctl.run([*command, *hosts]) == 0
    printed = capsys.readouterr().out
    settings = load(directory / "smpd.ini")
    assert (settings.tor.onion, settings.tor.control) == (True, "own")
    # What Tor hides, the proxy does not show to other relays.
    mode = "onion" if host == "smp.example.com" else "always"
    assert (settings.proxy.socks_proxy, settings.proxy.socks_mode) == ("own", mode)
    assert exposure(settings) is None
    name = stored(directory / "onion.key").address
    socket = f"unix:{tmp_path}/a\\:relay\\=x/onion.sock:mode=600"
    assert settings.server.listen == ((socket,) if host is None else ("tcp:5223", socket))
    assert onion_target(settings.server.listen) == f"unix:{directory}/onion.sock"
    (line,) = (line for line in printed.splitlines() if line.startswith("Address:"))
    address = ServerAddress.parse(line.split()[1])
    assert [str(each) for each in address.location.hosts] == [*hosts[1:], name]
    assert ctl.run(["address", "--config", str(directory / "smpd.ini")]) == 0
    assert capsys.readouterr().out == f"{address}\n"


@pytest.mark.parametrize("hosts", [(), ("--host", "a.example")])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("sp ace", "'{}/tor' has a character that a torrc "),
        ("n\new", "'"),
        ('"', "'{}/tor' has a character that a torrc cannot"),
        ("ü", "'{}/tor' has a character that is not ASCII\n"),
        (100 * "x", "the path of tor's directory has more "),
        ("a,b", 'found "{}/onion.sock"; allowed: a path of '),
    ],
)
def test_a_directory_in_which_no_onion_service_can_be(
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    name: str,
    says: str,
    hosts: tuple[str, ...],
) -> None:
    """Tor could not be told where it is; nothing is made."""
    directory = tmp_path_factory.mktemp("x") / name
    assert ctl.run(["init", "--directory", str(directory), "--onion", *hosts]) == 1
    out, complaint = capsys.readouterr()
    assert out == ""
    assert complaint.startswith(
        f"smpctl: no onion service can be in that directory: {says.format(directory)}"
    )
    assert complaint.count("\n") == 1
    assert not directory.exists()


def test_a_socket_of_its_own_is_needed_only_where_tor_connects_to_it(tmp_path: Path) -> None:
    directory = tmp_path / "a,b"
    command = ["init", "--directory", str(directory), "--onion", "--listen", "tcp:443", "--no-qr"]
    assert ctl.run(command) == 0
    assert load(directory / "smpd.ini").server.listen == ("tcp:443",)


@pytest.mark.parametrize("name", ["sp ace", "ü", '"', "a=b,c:d", 100 * "x"])
def test_a_directory_is_any_where_tor_need_not_know_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    directory = tmp_path / name
    command = ["--directory", str(directory), "--host", "a.example", "--no-qr"]
    assert ctl.run(["init", *command]) == 0
    options = Options()
    options.parseOptions(["--config", str(directory / "smpd.ini")])
    assert isinstance(makeService(options), RelayService)


@pytest.mark.parametrize("there", [False, True])
def test_a_relay_that_is_made_with_an_endpoint_that_is_an_onion_service(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, there: bool
) -> None:
    """A key that is there already is taken."""
    directory, key = tmp_path / "relay", tmp_path / "relay/onion.key"
    if there:
        directory.mkdir()
        key.touch(0o600)
        key.write_bytes(OnionKey.generate(os.urandom).encode())
    before = key.read_bytes() if there else None
    listen = ["--listen", f"onionservice:443:key={key}"]
    assert ctl.run(["init", "--directory", str(directory), *listen, "--no-qr"]) == 0
    printed = capsys.readouterr().out
    assert before in (None, key.read_bytes())
    (line,) = (line for line in printed.splitlines() if line.startswith("Address:"))
    assert line.endswith(f"@{stored(key).address}:443")
    assert ctl.run(["address", "--config", str(directory / "smpd.ini")]) == 0
    assert capsys.readouterr().out == f"{line.split()[1]}\n"


def test_a_relay_that_nobody_can_reach(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ctl.run(["init", "--directory", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "smpctl: init: a relay needs a --host, or --onion\n"
    assert list(tmp_path.iterdir()) == []


OFF = "[tor] onion is off: the relay does not use the key in {}."


class TestNoServiceInTor:
    """[tor] onion is off."""

    @pytest.fixture
    def off(self, relay: Relay) -> Relay:
        (relay.directory / "smpd.ini").write_text("")
        return relay

    @pytest.fixture
    def endpoint(self, off: Relay) -> Path:
        """The key file of an endpoint, which is not there yet."""
        key = off.directory / "end.key"
        text = f"[server]\nlisten = onionservice:5223:key={key}\n"
        (off.directory / "smpd.ini").write_text(text)
        return key

    def test_there_is_none(self, off: Relay, tmp_path: Path) -> None:
        """No start would make a key."""
        says = "smpctl: the relay is no onion service: [tor] onion is off\n"
        for arguments in (("show",), ("rotate",), ("backup", tmp_path / "saved")):
            assert off(*arguments) == (1, "", says)
        (off.directory / "smpd.ini").write_text("[tor]\nservice_directory = hs\n")
        assert off("show") == (1, "", says)

    def test_a_key_can_be_prepared(self, off: Relay, tmp_path: Path) -> None:
        note = OFF.format(off.key) + "\n"
        status, name, said = off("new")
        assert (status, said) == (0, note)
        assert name == f"{stored(off.key).address}\n"
        assert off("show") == (0, name, note)
        assert off("backup", tmp_path / "saved") == (0, name, note)
        off.key.unlink()
        assert off("restore", tmp_path / "saved") == (0, name, note)
        status, changed, said = off("rotate")
        assert (status, said) == (0, note)
        assert changed != name

    def test_the_first_start_makes_that_of_an_endpoint(
        self, off: Relay, endpoint: Path, tmp_path: Path
    ) -> None:
        says = f"smpctl: {endpoint} is not there: the first start makes it\n"
        for arguments in (("show",), ("rotate",), ("backup", tmp_path / "saved")):
            assert off(*arguments) == (1, "", says)

    def test_that_of_an_endpoint(self, off: Relay, endpoint: Path, tmp_path: Path) -> None:
        key = kept_key(endpoint, os.urandom)
        name = f"{key.address}\n"
        assert off("show") == (0, name, "")
        assert off("backup", tmp_path / "saved") == (0, name, "")
        assert stored(tmp_path / "saved") == key
        status, changed, said = off("rotate")
        assert (status, said) == (0, "")
        assert changed == f"{stored(endpoint).address}\n" != name
        assert stored(tmp_path / f"end.key.{key.address[:8]}") == key
        assert not off.key.exists()

    def test_a_key_that_is_not_the_endpoints(
        self, off: Relay, endpoint: Path, tmp_path: Path
    ) -> None:
        note = f"{OFF.format(off.key)} That of its onionservice endpoint is in {endpoint}.\n"
        status, name, said = off("new")
        assert (status, said) == (0, note)
        assert off("restore", off.key) == (0, name, note)
        assert not endpoint.exists()

    def test_an_endpoint_with_the_key_that_a_service_in_tor_would_have(self, off: Relay) -> None:
        text = f"[server]\nlisten = onionservice:5223:key={off.key}\n"
        (off.directory / "smpd.ini").write_text(text)
        status, name, said = off("new")
        assert (status, said) == (0, "")
        assert off("show") == (0, name, "")


class TestSeveralServices:
    """One in [tor], and one by an endpoint."""

    @pytest.fixture
    def keys(self, relay: Relay, tmp_path: Path) -> tuple[OnionKey, OnionKey]:
        """That in [tor], and that of the endpoint."""
        text = f"[server]\nlisten = tcp:5223 onionservice:5223:key={tmp_path}/end.key\n"
        (tmp_path / "smpd.ini").write_text(f"[tor]\nonion = on\n{text}")
        return kept_key(relay.key, os.urandom), kept_key(tmp_path / "end.key", os.urandom)

    def test_their_names(self, relay: Relay, keys: tuple[OnionKey, OnionKey]) -> None:
        assert relay("show") == (0, "".join(f"{key.address}\n" for key in keys), "")

    def test_which_one_is_meant(
        self, relay: Relay, keys: tuple[OnionKey, OnionKey], tmp_path: Path
    ) -> None:
        own, other = (key.address for key in keys)
        says = f"smpctl: say with --service which onion service: {own}, {other}\n"
        saved = tmp_path / "saved"
        assert relay("backup", saved) == relay("rotate") == (1, "", says)
        stranger = OnionKey.generate(os.urandom).address
        says = f"smpctl: the relay has no onion service {stranger} whose key it has\n"
        assert relay("backup", saved, "--service", stranger) == (1, "", says)
        assert not saved.exists()
        name = other.removesuffix(".onion")
        assert relay("backup", saved, "--service", name) == (0, f"{other}\n", "")
        assert stored(saved) == keys[1]
        assert relay("rotate", "--service", own)[0] == 0
        assert stored(tmp_path / f"onion.key.{own[:8]}") == keys[0]
        assert stored(tmp_path / "end.key") == keys[1]


class TestServiceInTorrc:
    """Whose key the relay does not have."""

    @pytest.fixture
    def service(self, relay: Relay, tmp_path: Path) -> Path:
        """Its directory."""
        configuration = f"[tor]\nonion = on\nservice_directory = {tmp_path / 'tor'}\n"
        (tmp_path / "smpd.ini").write_text(configuration)
        (tmp_path / "tor").mkdir()
        return tmp_path / "tor"

    def test_its_name(self, relay: Relay, service: Path) -> None:
        name = OnionKey.generate(os.urandom).address
        (service / "hostname").write_text(f"{name}\n")
        assert relay("show") == (0, f"{name}\n", "")
        host = onion_host(load(relay.directory / "smpd.ini"))
        assert host is not None
        assert host.text == name

    def test_its_key_is_tors(self, relay: Relay, service: Path, tmp_path: Path) -> None:
        says = (
            f"smpctl: the key of the onion service is tor's own, in {service}, and the relay has "
            "none\n"
        )
        saved = tmp_path / "saved"
        for arguments in (("new",), ("rotate",), ("backup", saved), ("restore", saved)):
            assert relay(*arguments) == (1, "", says)
        assert not relay.key.exists()

    def test_beside_an_endpoint(self, relay: Relay, service: Path, tmp_path: Path) -> None:
        """The key of that is the only one that the relay has."""
        (service / "hostname").write_text(OnionKey.generate(os.urandom).address)
        with (tmp_path / "smpd.ini").open("a") as file:
            file.write(f"[server]\nlisten = tcp:1 onionservice:1:key={tmp_path}/end.key\n")
        key = kept_key(tmp_path / "end.key", os.urandom)
        name = (service / "hostname").read_text()
        assert relay("show") == (0, f"{name}\n{key.address}\n", "")
        assert relay("backup", tmp_path / "saved") == (0, f"{key.address}\n", "")

    @pytest.mark.parametrize(
        "content", [b"", b"example.onion", b"a" * 56 + b".onion", b"\xff" * 56 + b".onion"]
    )
    def test_what_is_no_name(self, relay: Relay, service: Path, content: bytes) -> None:
        path = service / "hostname"
        path.write_bytes(content)
        says = f"smpctl: {path} has no name of an onion service of version 3 in it\n"
        assert relay("show") == (1, "", says)

    def test_a_name_that_cannot_be_read(self, relay: Relay, service: Path) -> None:
        says = (
            f"smpctl: {service / 'hostname'} cannot be read: No such file or directory (tor writes "
            "it when it starts, and lets its group read it with HiddenServiceDirGroupReadable 1 "
            "and DataDirectoryGroupReadable 1)\n"
        )
        assert relay("show") == (1, "", says)
