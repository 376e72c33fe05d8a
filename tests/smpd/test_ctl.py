"""smpctl: what each command does, says and refuses."""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import qrcode

from smpd import ctl
from smpd.config import Settings, load
from smpd.credentials import read_certificates, read_identity, read_key
from smpd.ctl import installation
from smpd.ctl.address import print_qr_code
from smpd.ctl.errors import CommandError
from txsimplex.addresses import ServerAddress
from txsimplex.certificates import Certificate, fingerprint
from txsimplex.client.session import utc_now
from txsimplex.keys import Algorithm
from txsimplex.scanning import to_base64url
from txsimplex.whole_files import create

ROOT = Path(__file__).parents[2]
FILES = ["ca.crt", "ca.key", "server.crt", "server.key", "smpd.ini"]


class Result(NamedTuple):
    """What a run of the command gave."""

    status: int
    out: str
    err: str


Smpctl = Callable[..., Result]


@pytest.fixture
def smpctl(capsys: pytest.CaptureFixture[str]) -> Smpctl:
    def run(*arguments: str | Path) -> Result:
        capsys.readouterr()
        status = ctl.run([str(argument) for argument in arguments])
        return Result(status, *capsys.readouterr())

    return run


class Relay:
    """An installation that `smpctl init` made, and smpctl for it."""

    def __init__(self, directory: Path, smpctl: Smpctl) -> None:
        self.directory = directory
        self.configuration = directory / "smpd.ini"
        self._smpctl = smpctl

    def __call__(self, *arguments: str | Path) -> Result:
        return self._smpctl("--config", self.configuration, *arguments)

    def identity(self) -> Any:
        server = load(self.configuration).server
        return read_identity(server.certificate, server.key, server.ca_certificate, utc_now())

    def configure(self, text: str) -> None:
        self.configuration.write_text(text)

    def contents(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.directory.iterdir()}


@pytest.fixture
def relay(tmp_path: Path, smpctl: Smpctl) -> Relay:
    directory = tmp_path / "relay"
    assert smpctl("init", "--directory", directory, "--host", "a.example", "--no-qr").status == 0
    return Relay(directory, smpctl)


def assert_refused(result: Result, status: int, *parts: str) -> None:
    """The command failed with this status, said why in one line, and did nothing else."""
    assert result.status == status
    assert result.err.count("\n") == 1
    assert result.err.startswith("smpctl")
    for part in parts:
        assert part in result.err
    assert "Traceback" not in result.err


class TestInit:
    def test_files_and_their_modes(self, relay: Relay) -> None:
        modes = {path.name: path.stat().st_mode & 0o7777 for path in relay.directory.iterdir()}
        assert modes == {
            "ca.crt": 0o644,
            "ca.key": 0o600,
            "server.crt": 0o644,
            "server.key": 0o600,
            "smpd.ini": 0o600,
        }
        assert relay.directory.stat().st_mode & 0o7777 == 0o700

    def test_configuration(self, tmp_path: Path, smpctl: Smpctl) -> None:
        directory = tmp_path / "deep/var"
        result = smpctl(
            "init", "--directory", directory, "--host", "smp.example.com", "--host", "::1",
            "--listen", "tcp:443", "--listen", "unix:/run/s:mode=600", "--password", "pä%ss",
        )  # fmt: skip
        assert result.status == 0
        settings = load(directory / "smpd.ini")
        assert [str(host) for host in settings.server.hosts] == ["smp.example.com", "::1"]
        assert settings.server.listen == ("tcp:443", "unix:/run/s:mode=600")
        assert settings.queues.password == "pä%ss".encode()
        defaults = Settings()
        assert settings.protocol == defaults.protocol
        assert settings.store == replace(defaults.store, path=directory / "store")

    def test_the_configuration_keeps_the_documentation(self, relay: Relay) -> None:
        lines = relay.configuration.read_text().split("\n")
        template = (ROOT / "etc/smpd.ini").read_text().split("\n")
        assert [line for line in lines if line.startswith("# ")] == [
            line for line in template if line.startswith("# ")
        ]
        assert set(lines) - set(template) == {"hosts = a.example"}

    def test_what_it_prints(self, tmp_path: Path, smpctl: Smpctl) -> None:
        result = smpctl("init", "--directory", tmp_path, "--host", "smp.example.com")
        key_hash = fingerprint(read_certificates(tmp_path / "ca.crt")[0])
        address = f"smp://{to_base64url(key_hash)}@smp.example.com"
        assert f"\nAddress:     {address}\n" in result.out
        assert f"\nFingerprint: {to_base64url(key_hash)}\n" in result.out
        assert f"Take {tmp_path / 'ca.key'} offline now" in result.out
        assert qr_code_in(result.out) == qr_code_of(address)
        assert result.err == ""

    def test_without_a_qr_code(self, tmp_path: Path, smpctl: Smpctl) -> None:
        result = smpctl("init", "--directory", tmp_path, "--host", "a.example", "--no-qr")
        assert "█" not in result.out

    def test_certificates_that_clients_accept(self, relay: Relay) -> None:
        """smp-ops.md §3, smp-wire.md §4.2."""
        identity = relay.identity()
        assert len(identity.chain) == 2
        assert identity.key.algorithm is Algorithm.ED25519
        assert (
            read_key(relay.directory / "ca.key").public == Certificate.decode(identity.chain[1]).key
        )

    def test_ed448(self, tmp_path: Path, smpctl: Smpctl) -> None:
        smpctl("init", "--directory", tmp_path, "--host", "a.example", "--algorithm", "ed448")
        assert read_key(tmp_path / "server.key").algorithm is Algorithm.ED448
        assert read_key(tmp_path / "ca.key").algorithm is Algorithm.ED448

    def test_random_passwords(self, tmp_path: Path, smpctl: Smpctl) -> None:
        passwords = set()
        for name in "ab":
            result = smpctl(
                "init", "--directory", tmp_path / name, "--host", "a.example", "--random-password"
            )
            (text,) = re.findall("^Address: +(.*)$", result.out, re.MULTILINE)
            password = ServerAddress.parse(text).password
            assert password is not None
            assert load(tmp_path / name / "smpd.ini").queues.password == password.encode()
            passwords.add(password)
        assert len(passwords) == 2
        assert all(len(password) == 32 for password in passwords)

    @pytest.mark.parametrize("name", FILES)
    def test_never_overwrites(self, tmp_path: Path, smpctl: Smpctl, name: str) -> None:
        (tmp_path / name).write_bytes(b"precious")
        result = smpctl("init", "--directory", tmp_path, "--host", "a.example")
        assert_refused(result, 1, str(tmp_path / name), "no installation is overwritten")
        assert result.out == ""
        assert [path.name for path in tmp_path.iterdir()] == [name]
        assert (tmp_path / name).read_bytes() == b"precious"

    def test_a_failure_on_the_way_leaves_nothing(
        self, tmp_path: Path, smpctl: Smpctl, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(path: Path, data: bytes, mode: int) -> None:
            if path.name == "server.crt":
                raise OSError(28, "No space left on device", str(path))
            create(path, data, mode)

        monkeypatch.setattr(installation, "create", full)
        result = smpctl("init", "--directory", tmp_path, "--host", "a.example")
        assert_refused(result, 1, f"smpctl: {tmp_path}/server.crt: No space left on device")
        assert list(tmp_path.iterdir()) == []

    def test_a_file_where_the_directory_should_be(self, tmp_path: Path, smpctl: Smpctl) -> None:
        (tmp_path / "file").write_bytes(b"")
        result = smpctl("init", "--directory", tmp_path / "file/sub", "--host", "a.example")
        assert_refused(result, 1, "Not a directory")

    def test_a_long_host_name(self, tmp_path: Path, smpctl: Smpctl) -> None:
        host = "a" * 60 + ".example.com"
        assert smpctl("init", "--directory", tmp_path, "--host", host).status == 0
        assert str(load(tmp_path / "smpd.ini").server.hosts[0]) == host

    @pytest.mark.parametrize(
        ("arguments", "part"),
        [
            ([], "--host"),
            (["--host", "a,b"], 'argument --host: found "a,b"; allowed: domain names'),
            (["--host", "a", "--host", "a"], 'found "a" twice'),
            (["--host", "a", "--listen", "ssl:1"], "the relay does TLS itself"),
            (["--host", "a", "--listen", "tcp:x"], "a port from 0 to 65535"),
            (["--host", "a", "--password", "a@hunter2"], "found a value that is not shown"),
            (["--host", "a", "--password", "hunter2\nx"], "found a value that is not shown"),
            (["--host", "a", "--password", "x", "--random-password"], "not allowed with"),
            (["--host", "a", "--algorithm", "rsa"], "--algorithm"),
            (["--host", "a", "--hosts", "b"], "--hosts"),
        ],
    )
    def test_wrong_usage(
        self, tmp_path: Path, smpctl: Smpctl, arguments: list[str], part: str
    ) -> None:
        result = smpctl("init", "--directory", tmp_path, *arguments)
        assert_refused(result, 2, part)
        assert "hunter2" not in result.err
        assert list(tmp_path.iterdir()) == []


def qr_code_of(text: str) -> list[list[bool]]:
    code = qrcode.QRCode(border=0)
    code.add_data(text)
    return [[bool(module) for module in row] for row in code.get_matrix()]


def qr_code_in(out: str) -> list[list[bool]]:
    """The modules of a QR code printed in half blocks, dark ones as spaces, without its border."""
    lines = [line for line in out.split("\n") if line and set(line) <= set("\xa0 ▀▄█")]
    rows = []
    for line in lines:
        rows.append([character in "█▀" for character in line])
        rows.append([character in "█▄" for character in line])
    dark = [(y, x) for y, row in enumerate(rows) for x, module in enumerate(row) if module]
    top, left = min(dark)[0], min(x for _, x in dark)
    bottom, right = max(dark)[0], max(x for _, x in dark)
    return [row[left : right + 1] for row in rows[top : bottom + 1]]


class TestAddress:
    def test_is_that_of_init(self, relay: Relay) -> None:
        result = relay("address")
        key_hash = to_base64url(fingerprint(relay.identity().chain[1]))
        assert result == (0, f"smp://{key_hash}@a.example\n", "")

    def test_port_and_password(self, relay: Relay) -> None:
        relay.configure("[server]\nhosts = a.example\nlisten = tcp:99\n[queues]\npassword = pw")
        assert relay("address").out.endswith(":pw@a.example:99\n")

    def test_qr_code(self, relay: Relay) -> None:
        result = relay("address", "--qr")
        address, _, code = result.out.partition("\n")
        assert qr_code_in(code) == qr_code_of(address)

    def test_qr_code_on_a_terminal_brings_its_colours(self, relay: Relay) -> None:
        class Terminal(io.StringIO):
            encoding = "utf-8"

            def isatty(self) -> bool:
                return True

        out = Terminal()
        print_qr_code(ServerAddress.parse(relay("address").out.strip()), out)
        assert "\x1b[" in out.getvalue()

    def test_qr_code_in_an_encoding_without_blocks(self, relay: Relay) -> None:
        address = ServerAddress.parse(relay("address").out.strip())
        out = io.TextIOWrapper(io.BytesIO(), "latin-1")
        with pytest.raises(CommandError, match="cannot be printed in latin-1"):
            print_qr_code(address, out)

    def test_without_hosts(self, relay: Relay) -> None:
        relay.configure("")
        assert_refused(relay("address"), 1, "sets no hosts")

    def test_faults_of_the_configuration(self, relay: Relay) -> None:
        relay.configure("[queues]\nquota = x\n[nonsense]\n")
        result = relay("address")
        assert result.status == 1
        assert result.out == ""
        first, second = result.err.splitlines()
        assert first.startswith(f"smpctl: {relay.configuration}, line 2: [queues] quota: ")
        assert second.startswith(f"smpctl: {relay.configuration}, line 3: [nonsense]: ")

    @pytest.mark.parametrize("content", [None, b"", b"\xff"])
    def test_an_unusable_authority(self, relay: Relay, content: bytes | None) -> None:
        path = relay.directory / "ca.crt"
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        assert_refused(relay("address"), 1, str(path))

    def test_the_configuration_is_named_before_the_command_or_behind_it(
        self, relay: Relay, smpctl: Smpctl, tmp_path: Path
    ) -> None:
        before = relay("address")
        assert smpctl("address", "--config", relay.configuration) == before
        none = tmp_path / "none.ini"
        assert smpctl("--config", none, "address", "--config", relay.configuration) == before

    def test_a_configuration_that_is_not_there(self, tmp_path: Path, smpctl: Smpctl) -> None:
        result = smpctl("--config", tmp_path / "none.ini", "address")
        assert_refused(result, 1, f"{tmp_path}/none.ini", "No such file or directory")


class TestCertificate:
    def test_rotate(self, relay: Relay) -> None:
        before, address = relay.identity(), relay("address").out
        result = relay("certificate", "rotate")
        after = relay.identity()
        assert result.status == 0
        assert str(relay.directory / "server.crt") in result.out
        assert after.chain[0] != before.chain[0]
        assert after.key.encode() != before.key.encode()
        assert after.chain[1] == before.chain[1]
        assert Certificate.decode(after.chain[0]).subject == (
            Certificate.decode(before.chain[0]).subject
        )
        assert relay("address").out == address
        assert sorted(relay.contents()) == FILES
        assert (relay.directory / "server.key").stat().st_mode & 0o7777 == 0o600

    def test_rotate_keeps_the_algorithm_or_takes_another(self, relay: Relay) -> None:
        assert relay("certificate", "rotate", "--algorithm", "ed448").status == 0
        assert relay.identity().key.algorithm is Algorithm.ED448
        assert relay("certificate", "rotate").status == 0
        assert relay.identity().key.algorithm is Algorithm.ED448

    def test_rotate_with_the_key_from_elsewhere(self, relay: Relay, tmp_path: Path) -> None:
        before = relay.identity()
        (relay.directory / "ca.key").rename(tmp_path / "stick.key")
        unchanged = relay.contents()
        assert_refused(
            relay("certificate", "rotate"), 1, f"{relay.directory}/ca.key is not there", "--ca-key"
        )
        assert relay.contents() == unchanged
        assert relay("certificate", "rotate", "--ca-key", tmp_path / "stick.key").status == 0
        assert relay.identity().chain[0] != before.chain[0]

    def test_rotate_with_the_key_of_another_authority(
        self, relay: Relay, tmp_path: Path, smpctl: Smpctl
    ) -> None:
        smpctl("init", "--directory", tmp_path / "other", "--host", "b.example")
        unchanged = relay.contents()
        result = relay("certificate", "rotate", "--ca-key", tmp_path / "other/ca.key")
        assert_refused(result, 1, f"the CA key is not that of {relay.directory}/ca.crt")
        assert relay.contents() == unchanged

    @pytest.mark.parametrize("content", [b"", b"nonsense", b"\x00\xff"])
    def test_rotate_with_no_key(self, relay: Relay, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "key").write_bytes(content)
        result = relay("certificate", "rotate", "--ca-key", tmp_path / "key")
        assert_refused(result, 1, f"{tmp_path}/key does not contain", "private key")

    def test_rotate_with_a_directory_as_key(self, relay: Relay, tmp_path: Path) -> None:
        result = relay("certificate", "rotate", "--ca-key", tmp_path)
        assert_refused(result, 1, f"{tmp_path} cannot be read: Is a directory")

    def test_rotate_takes_the_name_of_the_first_host(self, relay: Relay) -> None:
        relay.configure("[server]\nhosts = new.example")
        relay("certificate", "rotate")
        assert "CN=new.example" in relay("certificate", "show").out

    def test_rotate_without_hosts_keeps_the_name(self, relay: Relay) -> None:
        relay.configure("")
        assert relay("certificate", "rotate").status == 0
        assert "CN=a.example" in relay("certificate", "show").out

    def test_rotate_makes_a_lost_certificate_anew(self, relay: Relay) -> None:
        (relay.directory / "server.crt").unlink()
        (relay.directory / "server.key").unlink()
        assert relay("certificate", "rotate").status == 0
        assert relay.identity().key.algorithm is Algorithm.ED25519
        (relay.directory / "server.crt").unlink()
        relay.configure("")
        assert_refused(relay("certificate", "rotate"), 1, "sets no hosts")

    def test_show(self, relay: Relay) -> None:
        result = relay("certificate", "show")
        online, identity = relay.identity().chain
        assert result.status == 0
        assert "Online certificate: CN=a.example\n" in result.out
        assert "CN=SMP server CA" in result.out
        assert result.out.count("  Algorithm:   Ed25519\n") == 2
        assert f"  Fingerprint: {to_base64url(fingerprint(online))}\n" in result.out
        assert f"  Fingerprint: {to_base64url(fingerprint(identity))}\n" in result.out

    def test_show_tells_what_clients_would_refuse(
        self, relay: Relay, tmp_path: Path, smpctl: Smpctl
    ) -> None:
        smpctl("init", "--directory", tmp_path / "other", "--host", "b.example")
        shutil.copy(tmp_path / "other/ca.crt", relay.directory / "ca.crt")
        assert_refused(relay("certificate", "show"), 1, "a signature is wrong")

    def test_show_with_the_key_of_another_certificate(self, relay: Relay) -> None:
        shutil.copy(relay.directory / "ca.key", relay.directory / "server.key")
        assert_refused(relay("certificate", "show"), 1, "is not that of the certificate")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "COMMAND"),
        (["nonsense"], "nonsense"),
        (["certificate"], "COMMAND"),
        (["certificate", "nonsense"], "nonsense"),
        (["address", "more"], "more"),
        (["--conf=x", "address"], "--conf"),
        (["check"], "ADDRESS"),
        (["check", "smp://secret"], "not the address of an SMP relay"),
        (["check", "xftp://AAAA@a"], "not the address of an SMP relay"),
        (["check", "smp://AAAA:secret@a"], "the fingerprint has not the right length"),
        (["check", f"smp://{'A' * 43}=:secret@a:65536"], "the port is not from 1 to 65535"),
        (["check", f"smp://{'A' * 43}=:secret@a:0"], "the port is not from 1 to 65535"),
        (["check", "--timeout", "0", f"smp://{'A' * 43}=@a"], "seconds above 0"),
        (["check", "--timeout", "nan", f"smp://{'A' * 43}=@a"], "seconds above 0"),
        (["check", "--timeout", "x", f"smp://{'A' * 43}=@a"], "seconds above 0"),
    ],
)
def test_wrong_usage(smpctl: Smpctl, arguments: list[str], part: str) -> None:
    result = smpctl(*arguments)
    assert_refused(result, 2, part)
    assert result.out == ""
    assert "secret" not in result.err


@pytest.mark.parametrize("place", ["", "9050", "tor", "tor:0", "tor:x", "tor:99999"])
def test_a_place_of_a_socks_proxy_that_is_none(smpctl: Smpctl, place: str) -> None:
    result = smpctl("check", f"smp://{'A' * 43}=@a.example", f"--socks={place}")
    assert_refused(result, 2, "argument --socks: allowed: HOST:PORT, or a path with a / in it")


def test_a_socket_of_a_socks_proxy_that_cannot_be_connected_to(smpctl: Smpctl) -> None:
    address = f"smp://{'A' * 43}=@{'a' * 56}.onion"
    result = smpctl("check", address, "--socks", "/" + 107 * "x")
    assert_refused(result, 2, "argument --socks: allowed: a path of at most 107 bytes")


def test_only_onion_hosts_cannot_be_checked(smpctl: Smpctl) -> None:
    result = smpctl("check", f"smp://{'A' * 43}=@{'a' * 56}.onion")
    assert_refused(result, 1, "onion hosts only")


def test_as_a_process(tmp_path: Path) -> None:
    program = "from smpd.ctl import main; main()"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env={"PYTHONIOENCODING": "ascii"},
        )

    assert run("--help").returncode == 0
    assert run("nonsense").returncode == 2
    failed = run("--config", str(tmp_path / "none.ini"), "address")
    assert (failed.returncode, failed.stdout, failed.stderr.count("\n")) == (1, "", 1)
    # This encoding has neither blocks nor umlauts; the installation is made all the same.
    made = run("init", "--directory", str(tmp_path / "x"), "--host", "a.example", "--password", "ä")
    assert made.returncode == 0
    assert ":\\xe4@a.example" in made.stdout
    assert made.stderr == "smpctl: a QR code cannot be printed in ascii\n"


# -- documentation


def commands(
    parser: argparse.ArgumentParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Every parser with the words that lead to it."""
    yield path, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield from commands(sub, (*path, name))


COMMANDS = dict(commands(ctl.parser()))


def options(parser: argparse.ArgumentParser) -> set[str]:
    return {
        option
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--")
    }


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_has_examples(smpctl: Smpctl, path: tuple[str, ...]) -> None:
    result = smpctl(*path, "--help")
    assert result.status == 0
    examples = result.out.partition("\nexamples:\n")[2].splitlines()
    assert examples
    for example in examples:
        assert example.startswith("  smpctl ")
        assert " ".join(path) in example


def completions(*words: str) -> set[str]:
    """What bash offers behind these words, of which the last is not finished."""
    line = " ".join(f"'{word}'" for word in ("smpctl", *words))
    script = (
        f"source etc/smpctl.bash-completion; COMP_WORDS=({line}); COMP_CWORD={len(words)}; "
        "_smpctl; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stderr == ""
    return set(done.stdout.split())


class TestCompletion:
    @pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
    def test_offers_what_the_command_has(self, path: tuple[str, ...]) -> None:
        parser = COMMANDS[path]
        below = {sub[len(path)] for sub in COMMANDS if sub[: len(path)] == path != sub}
        assert completions(*path, "") == options(parser) | below

    def test_behind_the_configuration(self) -> None:
        assert completions("--config", "a", "address", "--") == {"--qr", "--config", "--help"}

    def test_values(self) -> None:
        assert completions("init", "--algorithm", "") == {"ed25519", "ed448"}
        assert completions("--config", "pyproj") == {"pyproject.toml"}
        assert completions("init", "--directory", "smp") == {"smpd"}
        assert completions("init", "--password", "") == set()

    def test_begun_words(self) -> None:
        assert completions("certificate", "r") == {"rotate"}


class TestManualPages:
    def test_smpctl_has_every_option_and_command(self) -> None:
        page = (ROOT / "docs/man/smpctl.1").read_text()
        for path, parser in COMMANDS.items():
            if path:
                assert re.search(rf"^\.Ss {' '.join(path)}( |$)", page, re.MULTILINE)
            for option in options(parser):
                assert f"Fl {option[1:]}" in page

    def test_smpd_ini_has_every_section_and_key_in_order(self) -> None:
        page = (ROOT / "docs/man/smpd.ini.5").read_text()
        found = re.findall(r"^\.(?:Ss \[([a-z_]+)\]|It Cm ([a-z_]+)$)", page, re.MULTILINE)
        sections: list[Any] = list(fields(Settings))
        known = []
        for section in sections:
            known.append((section.name, ""))
            known.extend(("", key.name) for key in fields(section.default_factory))
        assert found == known

    @pytest.mark.skipif(shutil.which("mandoc") is None, reason="mandoc is not installed")
    @pytest.mark.parametrize("name", ["smpd.8", "smpctl.1", "smpd.ini.5"])
    def test_mandoc_has_nothing_to_say(self, name: str) -> None:
        done = subprocess.run(
            ["mandoc", "-T", "lint", "-W", "warning", f"docs/man/{name}"],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        assert done.stdout + done.stderr == ""
