"""Conformance A: encodings, padding, keys, certificates and version ranges."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta

import nacl.secret
import pytest
from hypothesis import given, strategies as st

from tests.txsimplex.vectors import Vector, load, name_of
from txsimplex.boxes import BoxKey
from txsimplex.certificates import (
    CertificateError,
    Fault,
    SignedKey,
    check_server_chain,
    fingerprint,
)
from txsimplex.encoding import LargeMessageError, ParseError, Reader, i64, pad, short, unpad, whole
from txsimplex.issuing import make_authority, make_online
from txsimplex.keys import Algorithm, PrivateKey, PublicKey, verify
from txsimplex.smp.bodies import MessageBody, decode_body, encode_message_body
from txsimplex.smp.commands import Command, read_command
from txsimplex.smp.messages import Message, read_message
from txsimplex.smp.transmissions import Framing, Refused, Transmission
from txsimplex.smp.versions import VersionRange

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SESSION_ID = bytes(range(32))


def new_key(algorithm: Algorithm = Algorithm.ED25519) -> PrivateKey:
    return PrivateKey.generate(algorithm, os.urandom)


# -- numbers and times


def test_001_int64() -> None:
    encoded = bytes.fromhex("112210f47de98115")
    assert i64(1234567890123456789) == encoded
    assert whole(encoded, Reader.i64) == 1234567890123456789


@given(st.integers(-(2**63), 2**63 - 1))
def test_002_any_int64(value: int) -> None:
    assert whole(i64(value), Reader.i64) == value


@given(st.integers(0, 2**63 - 1), st.booleans(), st.binary(max_size=100))
def test_003_time_is_whole_seconds(timestamp: int, notify: bool, body: bytes) -> None:
    """A time on the wire, that of a message, is the number of its seconds and nothing else."""
    encoded = encode_message_body(timestamp, notify, body)
    assert encoded[:8] == i64(timestamp)
    if not encoded.startswith(b"QUOTA "):
        assert decode_body(encoded) == MessageBody(timestamp, notify, body)


def test_004_seconds_of_a_time() -> None:
    seconds = int(datetime(2022, 1, 1, 10, 24, 5, tzinfo=UTC).timestamp())
    assert seconds == 1641032645
    assert i64(seconds) == bytes.fromhex("0000000061d02bc5")


# -- padding


def test_005_pad() -> None:
    assert pad(b"abc", 5) == b"\0\3abc"
    with pytest.raises(LargeMessageError):
        pad(b"abc", 4)


def test_006_largest_padded() -> None:
    longest = b"x" * 65533
    assert unpad(pad(longest, 65535)) == longest
    for size in (65535, 65536, 70000):
        with pytest.raises(LargeMessageError):
            pad(longest + b"x", size)


def test_007_unpad_of_nothing() -> None:
    assert unpad(b"\0\0") == b""
    for invalid in (b"\0", b""):
        with pytest.raises(ParseError):
            unpad(invalid)


def test_008_unpad() -> None:
    assert unpad(b"\0\3abc") == b"abc"
    with pytest.raises(ParseError):
        unpad(b"\0\3ab")


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_009_padding_bytes_are_ignored(message: bytes, padding: bytes) -> None:
    assert unpad(len(message).to_bytes(2, "big") + message + padding) == message


# -- boxes, keys, signatures


@given(st.binary(max_size=80))
def test_010_box_between_two_keys(message: bytes) -> None:
    one, other = new_key(Algorithm.X25519), new_key(Algorithm.X25519)
    nonce = os.urandom(24)
    sealed = BoxKey(one.exchange(other.public)).seal_padded(message, nonce, 100)
    assert len(sealed) == 116
    assert BoxKey(other.exchange(one.public)).open_padded(sealed, nonce) == message


def test_011_symmetric_box_is_no_secretbox() -> None:
    key, nonce, message = bytes(range(32)), bytes(range(100, 124)), b"SimpleX"
    sealed = BoxKey(key).seal(message, nonce)
    assert sealed.hex() == "d65715bfef8c7e553333ee267bc337ba48feef433fa40a"
    assert sealed != nacl.secret.SecretBox(key).encrypt(message, nonce).ciphertext
    assert BoxKey(key).open(sealed, nonce) == message


@pytest.mark.parametrize("algorithm", Algorithm)
def test_012_keys_survive_der(algorithm: Algorithm) -> None:
    private = new_key(algorithm)
    assert PublicKey.decode(private.public.encode()) == private.public
    decoded = PrivateKey.decode(private.encode())
    assert (decoded.algorithm, decoded.raw) == (algorithm, private.raw)


@pytest.mark.parametrize("algorithm", [Algorithm.ED25519, Algorithm.ED448])
def test_013_signatures(algorithm: Algorithm) -> None:
    key = new_key(algorithm)
    signature = key.sign(b"a message")
    assert verify(key.public, b"a message", signature)
    assert not verify(key.public, b"another message", signature)


# -- certificates


class Authority:
    """A certificate with its key, which signs others."""

    def __init__(self, name: str = "SMP server CA", issuer: Authority | None = None) -> None:
        self.key = new_key()
        self.certificate: bytes = make_authority(
            self.key,
            NOW - timedelta(days=1),
            os.urandom,
            common_name=name,
            issuer=None if issuer is None else (issuer.certificate, issuer.key),
        )

    @property
    def key_hash(self) -> bytes:
        return fingerprint(self.certificate)

    def leaf(self) -> bytes:
        since = NOW - timedelta(days=1)
        return make_online(
            "localhost", new_key().public, self.certificate, self.key, since, os.urandom
        )


def fault(chain: list[bytes], authority: Authority) -> Fault | None:
    try:
        check_server_chain(chain, authority.key_hash, NOW)
    except CertificateError as error:
        return error.fault
    return None


def test_014_chain_of_two() -> None:
    authority, other = Authority(), Authority()
    assert fault([], authority) is Fault.EMPTY_CHAIN
    assert fault([authority.leaf(), authority.certificate], authority) is None
    assert fault([other.leaf(), other.certificate], authority) is Fault.UNKNOWN_CA


def test_015_leaf_of_another_authority() -> None:
    authority, other = Authority(), Authority()
    assert fault([other.leaf(), authority.certificate], authority) is Fault.INVALID_SIGNATURE
    unrelated = Authority("somebody").certificate
    assert fault([unrelated, authority.certificate], authority) is Fault.SELF_SIGNED


def test_016_lengths_of_chains() -> None:
    root = Authority("root")
    network = Authority("network", root)
    identity = Authority("identity", network)
    by_root = Authority("identity", root)
    leaf = identity.leaf()
    three = [by_root.leaf(), by_root.certificate, root.certificate]
    four = [leaf, identity.certificate, network.certificate, root.certificate]
    assert fault(three, by_root) is None
    assert fault(four, identity) is None
    assert fault(four, network) is Fault.UNKNOWN_CA
    assert fault([leaf], identity) is Fault.EMPTY_CHAIN
    assert fault([*four, root.certificate], identity) is Fault.TOO_DEEP


@pytest.mark.parametrize(
    ("algorithm", "size", "oid"),
    [(Algorithm.ED25519, 122, "300506032b6570"), (Algorithm.ED448, 173, "300506032b6571")],
)
def test_017_signed_session_key(algorithm: Algorithm, size: int, oid: str) -> None:
    """The reference's own are compared in tests/txsimplex/test_certificates.py."""
    signer, session = new_key(algorithm), new_key(Algorithm.X25519).public
    encoded = SignedKey.sign(session, signer).encode()
    inner = b"\x30\x2c" + session.encode()
    assert len(encoded) == size
    assert len(inner) == 46
    head = encoded.index(inner)
    assert encoded[head + 46 :].startswith(bytes.fromhex(oid) + b"\x03")
    signature = encoded[-algorithm.signature_size :]
    assert verify(signer.public, inner, signature)
    assert SignedKey.decode(encoded).verify(signer.public)


# -- vectors of the reference


ENCODED = [
    vector
    for vector in load("smp_modules", "encode")
    if vector["name"].partition(" ")[0] in ("cmd", "msg", "err")
]


@pytest.mark.parametrize("vector", ENCODED, ids=name_of)
def test_018_vectors_are_read_and_written_again(vector: Vector) -> None:
    """The larger sets, and the bodies and hellos of this one, are in tests/txsimplex.

    The lines of the reference's stores are no format of this project.
    """
    kind, _, name = vector["name"].partition(" ")
    _, has_version, version_text = name.rpartition(" v")
    version = int(version_text) if has_version else 18
    encoded = bytes.fromhex(vector["value"])
    read = read_command if kind == "cmd" else read_message
    decoded = read(encoded, 0, len(encoded), version)
    assert isinstance(decoded, (Command, Message))
    assert decoded.encode(version) == encoded


@pytest.mark.parametrize("vector", load("smp_modules", "decode-server"), ids=name_of)
def test_018_vectors_of_blocks(vector: Vector) -> None:
    framing = Framing(vector["version"], SESSION_ID)
    items = framing.read_commands(bytes.fromhex(vector["content"]))
    assert [described(item) for item in items] == [
        result.partition(" auth=")[0] for result in vector["results"]
    ]
    for item, result in zip(items, vector["results"], strict=True):
        if isinstance(item, Transmission):
            assert item.authorized.hex() == result.rpartition("authorized=")[2]


def described(item: Transmission | Refused) -> str:
    """The beginning of how the vectors say it."""
    if isinstance(item, Transmission):
        return f"CMD corr={item.corr_id.hex()} ent={item.entity_id.hex()}"
    reader = Reader(item.header)
    corr_id, entity_id = reader.short(), reader.short()
    assert item.header == short(corr_id) + short(entity_id)
    return f"ERR corr={corr_id.hex()} ent={entity_id.hex()} {item.error}"


# -- ranges of versions


def test_019_range_upside_down() -> None:
    for minimum, maximum in ((1, 1), (1, 2)):
        versions = VersionRange(minimum, maximum)
        assert whole(versions.encode(), VersionRange.read) == versions
    with pytest.raises(ParseError):
        whole(b"\0\2\0\1", VersionRange.read)


PAIRS = [((1, 2), (2, 3)), ((1, 3), (2, 4)), ((1, 2), (3, 4))]


@pytest.mark.parametrize(("pair", "expected"), list(zip(PAIRS, [2, 3, None], strict=True)))
def test_020_compatible_version(
    pair: tuple[tuple[int, int], tuple[int, int]], expected: int | None
) -> None:
    one, other = VersionRange(*pair[0]), VersionRange(*pair[1])
    assert one.compatible(other) == expected
    assert other.compatible(one) == expected


def test_021_intersection() -> None:
    assert VersionRange(1, 3).intersection(VersionRange(2, 4)) == VersionRange(2, 3)
    assert VersionRange(1, 2).intersection(VersionRange(3, 4)) is None


def test_022_capped_range() -> None:
    assert VersionRange(1, 3).cap(2) == VersionRange(1, 2)
    assert VersionRange(1, 3).cap(4) is None
    assert VersionRange(2, 3).cap(1) is None


@given(st.integers(0, 65535), st.integers(0, 65535), st.integers(0, 65535))
def test_023_version_in_range(version: int, one: int, other: int) -> None:
    versions = VersionRange(min(one, other), max(one, other))
    assert (version in versions) == (versions.minimum <= version <= versions.maximum)
