"""smpctl onion clients: who may reach the onion service."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from smpd import ctl
from tests.smpd.control_sockets import Answers
from torcfg.client_files import MOST_CLIENTS
from torcfg.client_keys import ClientKey, authorized
from torcfg.onion_keys import OnionKey

Answer = tuple[int, str, str]
NOT_RUNNING = "No relay runs that could be told: this takes effect when it starts.\n"
ALONE = "From now on nobody else reaches the onion service.\n"


class Relay:
    """A relay that is an onion service, and `smpctl onion clients` for it."""

    def __init__(self, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = directory
        self.clients = directory / "onion.clients"
        self.control = directory / "control.sock"
        self._capsys = capsys
        key = OnionKey.generate(os.urandom)
        self.name = key.address.removesuffix(".onion")
        (directory / "smpd.ini").write_text("[tor]\nonion = on\n")
        path = directory / "onion.key"
        path.touch(0o600)
        path.write_bytes(key.encode())

    def __call__(self, *arguments: str) -> Answer:
        """Status, output and complaint."""
        configuration = ("--config", str(self.directory / "smpd.ini"))
        status = ctl.run([*configuration, "onion", "clients", *arguments])
        return (status, *self._capsys.readouterr())


@pytest.fixture
def relay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Relay:
    return Relay(tmp_path, capsys)


def test_the_first_client(relay: Relay) -> None:
    status, line, notes = relay("add", "alice")
    assert status == 0
    name, kind, algorithm, secret = line.rstrip("\n").split(":")
    assert (name, kind, algorithm) == (relay.name, "descriptor", "x25519")
    key = ClientKey(base64.b32decode(secret + "===="))
    file = relay.clients / "alice.auth"
    assert file.read_text() == authorized(key.public)
    assert file.stat().st_mode & 0o777 == 0o600
    assert relay.clients.stat().st_mode & 0o777 == 0o700
    assert notes.startswith("This line is for alice alone, and is not kept here. ")
    assert notes.endswith(ALONE + NOT_RUNNING)
    assert relay("list") == (0, f"alice {key.public}\n", "")
    assert secret not in "".join(path.read_text() for path in relay.clients.iterdir())


@pytest.mark.parametrize("prefix", ["", "descriptor:x25519:"])
def test_a_client_that_has_made_its_own_key(relay: Relay, prefix: str) -> None:
    key = ClientKey.generate(os.urandom).public
    assert relay("add", "bob", "--key", prefix + key) == (0, "", ALONE + NOT_RUNNING)
    assert relay("list") == (0, f"bob {key}\n", "")


def test_the_last_one_goes_and_nobody_is_left(relay: Relay) -> None:
    relay("add", "alice")
    relay("add", "bob")
    assert relay("remove", "alice") == (0, "", NOT_RUNNING)
    status, _, notes = relay("remove", "bob")
    assert status == 0
    assert notes.startswith("No client is left: nobody may reach the onion service. ")
    nobody = "No client is left: nobody may reach the onion service.\n"
    assert relay("list") == (0, "", nobody)
    assert relay("open") == (0, "", NOT_RUNNING)
    everybody = "No client was named: everybody may reach the onion service.\n"
    assert relay("list") == (0, "", everybody)


def test_what_cannot_be_done(relay: Relay) -> None:
    relay("add", "alice")
    before = (relay.clients / "alice.auth").read_text()
    assert relay("add", "alice") == (1, "", "smpctl: there is a client alice already\n")
    assert (relay.clients / "alice.auth").read_text() == before
    assert relay("remove", "bob") == (1, "", "smpctl: there is no client bob\n")
    relay("open")
    says = "smpctl: everybody may reach the onion service already\n"
    assert relay("open") == (1, "", says)


def test_the_directory_has_more_in_it(relay: Relay) -> None:
    """Nobody is shut out by an attempt to let everybody in."""
    relay("add", "alice")
    other = relay.clients / "alice.auth~"
    other.touch()
    says = f"{other} is not the file of a client, and its directory has to go: move it away first"
    assert relay("open") == (1, "", f"smpctl: {says}\n")
    assert relay("list")[1].startswith("alice ")
    other.unlink()
    assert relay("open") == (0, "", NOT_RUNNING)


@pytest.mark.parametrize("name", ["", "../alice", "a b", ".alice", "x" * 65])
def test_names_that_are_none(relay: Relay, name: str) -> None:
    status, _, complaint = relay("add", name)
    assert status == 2
    assert "argument NAME: allowed: 1 to 64 letters, digits, dots, _ and -" in complaint
    assert not relay.clients.exists()


@pytest.mark.parametrize("key", ["", "AAAA", "x" * 52, "descriptor:ed25519:AAAA"])
def test_keys_that_are_none(relay: Relay, key: str) -> None:
    status, _, complaint = relay("add", "alice", f"--key={key}")
    assert status == 2
    assert "argument --key: found a key " in complaint
    assert not relay.clients.exists()


def test_there_is_no_key_of_an_onion_service(relay: Relay) -> None:
    """Its name is in the client's line."""
    (relay.directory / "onion.key").unlink()
    assert relay("add", "alice")[0] == 1
    assert not relay.clients.exists()


@pytest.mark.parametrize(
    ("ini", "says"),
    [
        ("", "the relay is no onion service: [tor] onion is off"),
        (
            "[tor]\nonion = on\nservice_directory = hs\n[server]\nlisten = tcp:5223\n",
            "the onion service is tor's own, and its clients are in authorized_clients in {}/hs",
        ),
    ],
)
@pytest.mark.parametrize("arguments", [("add", "a"), ("remove", "a"), ("list",), ("open",)])
def test_relays_that_have_no_clients(
    relay: Relay, ini: str, says: str, arguments: tuple[str, ...]
) -> None:
    (relay.directory / "smpd.ini").write_text(ini)
    complaint = f"smpctl: {says.format(relay.directory)}\n"
    assert relay(*arguments) == (1, "", complaint)
    assert not relay.clients.exists()


def test_a_file_that_cannot_be_used(relay: Relay) -> None:
    relay("add", "alice")
    (relay.clients / "alice.auth").write_text("nonsense")
    says = "smpctl: the key of alice cannot be used: not a file of tor's authorized_clients\n"
    assert relay("list") == (1, "", says)


def test_more_than_tor_takes(relay: Relay) -> None:
    relay.clients.mkdir(0o700)
    for number in range(MOST_CLIENTS):
        key = ClientKey.generate(os.urandom).public
        (relay.clients / f"client{number}.auth").write_text(authorized(key))
    says = f"smpctl: there are {MOST_CLIENTS} clients already, and tor takes no more\n"
    assert relay("add", "alice") == (1, "", says)


# -- endpoints


def with_endpoint(relay: Relay, name: str, *, onion: str = "on", clients: bool = True) -> str:
    """The name of one more onion service, an endpoint of the relay."""
    key = OnionKey.generate(os.urandom)
    path = relay.directory / f"{name}.key"
    path.touch(0o600)
    path.write_bytes(key.encode())
    option = f":clients={relay.directory}/{name}.clients" if clients else ""
    listen = f"tcp:5223 onionservice:5223:key={path}{option}"
    configuration = f"[tor]\nonion = {onion}\n[server]\nlisten = {listen}\n"
    (relay.directory / "smpd.ini").write_text(configuration)
    return key.address


def test_clients_of_an_endpoint(relay: Relay) -> None:
    name = with_endpoint(relay, "other", onion="off")
    status, line, _ = relay("add", "alice")
    assert status == 0
    assert line.startswith(name.removesuffix("onion")[:-1] + ":descriptor:x25519:")
    assert (relay.directory / "other.clients/alice.auth").exists()
    assert not relay.clients.exists()
    assert relay("list")[1].startswith("alice ")


def test_several_onion_services(relay: Relay) -> None:
    """Each with its own clients: which one has to be said."""
    own, other = f"{relay.name}.onion", with_endpoint(relay, "other")
    says = f"smpctl: say with --service which onion service: {own}, {other}\n"
    for arguments in (("add", "a"), ("remove", "a"), ("list",), ("open",)):
        assert relay(*arguments) == (1, "", says)
    assert relay("add", "alice", "--service", other.removesuffix(".onion"))[0] == 0
    assert relay("add", "bob", "--service", own)[0] == 0
    assert relay("list", "--service", other)[1].startswith("alice ")
    assert relay("list", "--service", own)[1].startswith("bob ")
    assert relay("remove", "alice", "--service", own)[0] == 1
    assert relay("open", "--service", own) == (0, "", NOT_RUNNING)
    assert relay("list", "--service", other)[1].startswith("alice ")
    assert not relay.clients.exists()


def test_services_that_are_not_there(relay: Relay) -> None:
    stranger = OnionKey.generate(os.urandom).address
    says = f"smpctl: the relay has no onion service {stranger} that clients can be named for\n"
    assert relay("list", "--service", stranger) == (1, "", says)
    status, _, complaint = relay("list", "--service", "a.onion")
    assert status == 2
    assert "argument --service: allowed: the name of an onion service, as in the " in complaint
    with_endpoint(relay, "other", onion="off", clients=False)
    says = "smpctl: the onionservice endpoint has no clients= in listen in [server]\n"
    assert relay("list") == (1, "", says)


# -- a relay that runs


@pytest.mark.parametrize(
    ("arguments", "notes"), [(("add", "bob"), ""), (("remove", "alice"), ""), (("open",), "")]
)
def test_the_relay_is_told(relay: Relay, arguments: tuple[str, ...], notes: str) -> None:
    relay("add", "alice")
    relay("add", "carol")
    onion = {"state": "publishing", "detail": "", "since": 0, "clients": 1}
    with Answers(relay.control, {"answer": {"onion": [onion]}}) as answers:
        status, _, said = relay(*arguments)
    assert status == 0
    assert answers.requests == [{"request": "onion clients"}]
    assert NOT_RUNNING not in said


def test_tor_is_away(relay: Relay) -> None:
    relay("add", "alice")
    onion = {"state": "away", "detail": "tor does not answer", "since": 61, "clients": 1}
    with Answers(relay.control, {"answer": {"onion": [onion]}}):
        assert relay("remove", "alice")[2].endswith(
            "This takes effect later: the onion service is away for 1 min 1 s "
            "(tor does not answer).\n"
        )


def test_the_relay_fails(relay: Relay) -> None:
    relay("add", "alice")
    with Answers(relay.control, {"error": "it cannot"}):
        status, _, complaint = relay("add", "bob")
    assert status == 1
    says = "smpctl: this takes effect when the relay starts again: it cannot\n"
    assert complaint.endswith(says)
    assert (relay.clients / "bob.auth").exists()
