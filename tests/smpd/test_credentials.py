"""Files of keys and certificates: modes, whole writes, pairs that survive an interruption."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest

from smpd import credentials
from smpd.credentials import (
    CredentialsError,
    pending,
    read_certificates,
    read_identity,
    read_key,
    replace_pair,
)
from txsimplex.issuing import make_authority, make_online
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.pem import encode_certificates, encode_key

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MADE = NOW - timedelta(days=1)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


class Pair(NamedTuple):
    certificate: bytes
    key: PrivateKey

    @property
    def pems(self) -> tuple[bytes, bytes]:
        return encode_certificates([self.certificate]), encode_key(self.key)


class Installation:
    """The three files of a relay in a directory."""

    def __init__(self, directory: Path) -> None:
        self.certificate = directory / "server.crt"
        self.key = directory / "server.key"
        self.ca_certificate = directory / "ca.crt"
        self.authority_key = PrivateKey.generate(Algorithm.ED25519, os.urandom)
        self.authority = make_authority(self.authority_key, MADE, os.urandom)
        self.ca_certificate.write_bytes(encode_certificates([self.authority]))
        self.first = self.new_pair()
        for path, pem in zip((self.certificate, self.key), self.first.pems, strict=True):
            path.write_bytes(pem)

    def new_pair(self) -> Pair:
        key = PrivateKey.generate(Algorithm.ED25519, os.urandom)
        args = (self.authority, self.authority_key, MADE, os.urandom)
        return Pair(make_online("smp.example.com", key.public, *args), key)

    def pair(self, at: datetime = NOW) -> Pair:
        identity = read_identity(self.certificate, self.key, self.ca_certificate, at)
        assert identity.chain[1:] == (self.authority,)
        return Pair(identity.chain[0], identity.key)

    def replace(self, pair: Pair) -> None:
        replace_pair(self.certificate, self.key, *pair.pems)

    def refusal(self, at: datetime = NOW) -> str:
        with pytest.raises(CredentialsError) as caught:
            self.pair(at)
        return str(caught.value)


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    return Installation(tmp_path)


def same(one: Pair, other: Pair) -> bool:
    return (one.certificate, one.key.encode()) == (other.certificate, other.key.encode())


class TestReading:
    def test_an_identity(self, installation: Installation) -> None:
        assert same(installation.pair(), installation.first)

    @pytest.mark.parametrize("name", ["certificate", "key", "ca_certificate"])
    def test_a_file_that_is_missing(self, installation: Installation, name: str) -> None:
        path: Path = getattr(installation, name)
        path.unlink()
        assert installation.refusal() == f"{path} cannot be read: No such file or directory"

    @pytest.mark.parametrize("name", ["certificate", "ca_certificate"])
    def test_a_file_that_is_no_certificate(self, installation: Installation, name: str) -> None:
        path: Path = getattr(installation, name)
        path.write_bytes(installation.key.read_bytes())
        assert installation.refusal() == f"{path} does not contain certificates in PEM"

    @pytest.mark.parametrize("pem", [b"", b"\xff\x00", b"-----BEGIN PRIVATE KEY-----\n"])
    def test_a_file_that_is_no_key(self, installation: Installation, pem: bytes) -> None:
        installation.key.write_bytes(pem)
        assert installation.refusal() == (
            f"{installation.key} does not contain an unencrypted Ed25519 or Ed448 private key "
            "in PEM"
        )

    def test_a_key_that_does_not_sign(self, tmp_path: Path) -> None:
        path = tmp_path / "key"
        path.write_bytes(encode_key(PrivateKey.generate(Algorithm.X25519, os.urandom)))
        with pytest.raises(CredentialsError, match="has no key for signatures"):
            read_key(path)

    def test_a_key_of_another_certificate(self, installation: Installation) -> None:
        installation.key.write_bytes(installation.new_pair().pems[1])
        assert installation.refusal() == (
            f"the key in {installation.key} is not that of the certificate in "
            f"{installation.certificate}"
        )

    def test_a_certificate_of_another_authority(
        self, installation: Installation, tmp_path: Path
    ) -> None:
        (tmp_path / "other").mkdir()
        other = Installation(tmp_path / "other")
        installation.ca_certificate.write_bytes(other.ca_certificate.read_bytes())
        assert installation.refusal() == (
            f"{installation.certificate} and {installation.ca_certificate}: a signature is wrong"
        )

    def test_a_time_at_which_it_is_not_valid(self, installation: Installation) -> None:
        sentence = installation.refusal(MADE - timedelta(seconds=1))
        assert sentence.endswith("a certificate is not valid yet")


class TestReplacingAPair:
    def test_the_new_one_is_read(self, installation: Installation) -> None:
        new = installation.new_pair()
        installation.key.chmod(0o600)
        installation.replace(new)
        assert same(installation.pair(), new)
        assert mode(installation.key) == 0o600
        assert not pending(installation.certificate).exists()

    @pytest.mark.parametrize("crashes", list(product(range(4), repeat=3)))
    def test_after_any_interruptions_there_is_a_pair(
        self,
        installation: Installation,
        monkeypatch: pytest.MonkeyPatch,
        crashes: tuple[int, ...],
    ) -> None:
        """Three replacements, each cut off before one of its renames or not at all (3)."""
        rename = Path.replace
        pairs = [installation.first]
        for crash in crashes:
            left = [crash]

            def stop(self: Path, target: Path, left: list[int] = left) -> Path:
                left[0] -= 1
                if left[0] == -1:
                    raise KeyboardInterrupt
                return rename(self, target)

            pairs.append(installation.new_pair())
            with monkeypatch.context() as patch:
                patch.setattr(Path, "replace", stop)
                with suppress(KeyboardInterrupt):
                    installation.replace(pairs[-1])
            assert any(same(installation.pair(), pair) for pair in pairs)
        installation.replace(last := installation.new_pair())
        assert same(installation.pair(), last)
        assert not pending(installation.certificate).exists()

    def test_interrupted_after_the_key_the_new_certificate_is_read_beside_the_old(
        self, installation: Installation
    ) -> None:
        new = installation.new_pair()
        pending(installation.certificate).write_bytes(new.pems[0])
        assert same(installation.pair(), installation.first)
        installation.key.write_bytes(new.pems[1])
        assert same(installation.pair(), new)

    def test_one_that_happens_while_the_pair_is_read(
        self, installation: Installation, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        new = installation.new_pair()
        late = [new]

        def read_key_then_replace(path: Path) -> PrivateKey:
            key = read_key(path)
            if late:
                installation.replace(late.pop())
            return key

        monkeypatch.setattr(credentials, "read_key", read_key_then_replace)
        assert same(installation.pair(), new)

    def test_a_waiting_certificate_that_is_broken_is_left_alone(
        self, installation: Installation
    ) -> None:
        pending(installation.certificate).write_bytes(b"half")
        assert same(installation.pair(), installation.first)
        new = installation.new_pair()
        installation.replace(new)
        assert same(installation.pair(), new)
        assert read_certificates(installation.certificate) == [new.certificate]
