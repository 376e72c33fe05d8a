"""Keys, signatures, DH: smp-wire.md §2, §3, conformance 12, 13."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, strategies as st

from tests.txsimplex.vectors import Vector, det, load, name_of
from txsimplex.encoding import ParseError, Reader
from txsimplex.keys import Algorithm, PrivateKey, PublicKey, verify
from txsimplex.smp.commands import auth_key, dh_key

NON_MINIMAL = "pubkey-role/x25519-nonminimal-len"
"""The reference throws at it; here it is a malformed key as any other (SURPRISES.md 4)."""

SIZES = {
    Algorithm.ED25519: (44, 64),
    Algorithm.ED448: (69, 114),
    Algorithm.X25519: (44, 0),
    Algorithm.X448: (68, 0),
}


def algorithm(vector: Vector) -> Algorithm:
    return Algorithm[vector["alg"].upper()]


@pytest.mark.parametrize("vector", load("crypto", "key"), ids=name_of)
def test_forms_of_keys(vector: Vector) -> None:
    """Conformance 12."""
    private = PrivateKey(algorithm(vector), bytes.fromhex(vector["private_raw"]))
    assert private.public.raw.hex() == vector["public_raw"]
    assert private.public.encode().hex() == vector["public_spki"]
    assert private.encode().hex() == vector["private_pkcs8"]
    public = PublicKey.decode(bytes.fromhex(vector["public_spki"]))
    assert public == private.public
    decoded = PrivateKey.decode(bytes.fromhex(vector["private_pkcs8"]))
    assert (decoded.algorithm, decoded.raw) == (private.algorithm, private.raw)
    assert decoded.public == public


@pytest.mark.parametrize("vector", load("crypto", "pubkey-role"), ids=name_of)
def test_what_keys_are_good_for(vector: Vector) -> None:
    spki = bytes.fromhex(vector["spki"])

    def accepted(read: Callable[[Reader], PublicKey]) -> bool:
        try:
            return read(Reader(bytes((len(spki),)) + spki)).encode() == spki
        except ParseError:
            return False

    if vector["name"] == NON_MINIMAL:
        assert "exception" in str(vector)
        assert not accepted(auth_key)
        assert not accepted(dh_key)
        return
    assert accepted(auth_key) is vector["as_auth"]
    assert accepted(dh_key) is vector["as_x25519"]


@pytest.mark.parametrize("vector", load("crypto", "sign"), ids=name_of)
def test_signatures(vector: Vector) -> None:
    """Conformance 13."""
    private = PrivateKey(algorithm(vector), bytes.fromhex(vector["private_raw"]))
    message, signature = bytes.fromhex(vector["msg"]), bytes.fromhex(vector["signature"])
    public = PublicKey(algorithm(vector), bytes.fromhex(vector["public_raw"]))
    assert private.sign(message) == signature
    assert private.sign(message) == signature
    assert verify(public, message, signature)
    assert not verify(public, message + b"x", signature)
    assert not verify(public, message, signature[:-1])
    assert not verify(public, message, signature + b"x")
    assert not verify(public, message, b"")
    assert not verify(public, message, bytes(len(signature)))


@pytest.mark.parametrize("vector", load("crypto", "dh"), ids=name_of)
def test_dh_secrets(vector: Vector) -> None:
    private = PrivateKey(algorithm(vector), bytes.fromhex(vector["private_raw"]))
    public = PublicKey(algorithm(vector), bytes.fromhex(vector["public_raw"]))
    assert private.exchange(public).hex() == vector["secret"]


@pytest.mark.parametrize("algorithm", Algorithm)
def test_new_keys(algorithm: Algorithm) -> None:
    asked: list[int] = []

    def random(size: int) -> bytes:
        asked.append(size)
        return det(size, "random")

    key = PrivateKey.generate(algorithm, random)
    assert asked == [algorithm.key_size]
    assert (len(key.public.encode()), algorithm.signature_size) == SIZES[algorithm]
    assert algorithm.signs is (algorithm.signature_size > 0)
    assert PublicKey.decode(key.public.encode()) == key.public
    assert key.public is key.public


def test_keys_only_do_what_their_algorithm_does() -> None:
    keys = {a: PrivateKey.generate(a, lambda size: det(size, "x")) for a in Algorithm}
    for algorithm in (Algorithm.X25519, Algorithm.X448):
        with pytest.raises(ValueError, match="do not sign"):
            keys[algorithm].sign(b"")
        assert not verify(keys[algorithm].public, b"", b"")
        assert not verify(keys[algorithm].public, b"", bytes(64))
    for algorithm in (Algorithm.ED25519, Algorithm.ED448):
        with pytest.raises(ValueError, match="do not agree"):
            keys[algorithm].exchange(keys[algorithm].public)
    with pytest.raises(ValueError, match="different"):
        keys[Algorithm.X25519].exchange(keys[Algorithm.X448].public)
    assert not verify(keys[Algorithm.ED25519].public, b"m", keys[Algorithm.ED448].sign(b"m"))


@pytest.mark.parametrize("algorithm", Algorithm)
def test_raw_keys_have_one_size(algorithm: Algorithm) -> None:
    for size in (0, algorithm.key_size - 1, algorithm.key_size + 1):
        with pytest.raises(ValueError, match="bytes"):
            PublicKey(algorithm, bytes(size))
        with pytest.raises(ValueError, match="bytes"):
            PrivateKey(algorithm, bytes(size))


def test_equality() -> None:
    """§2: same algorithm and same key."""
    ed = PublicKey(Algorithm.ED25519, bytes(32))
    x = PublicKey(Algorithm.X25519, bytes(32))
    assert ed == PublicKey(Algorithm.ED25519, bytes(32))
    assert hash(ed) == hash(PublicKey(Algorithm.ED25519, bytes(32)))
    assert ed != x
    assert ed != PublicKey(Algorithm.ED25519, bytes(31) + b"\1")
    assert ed != bytes(32)


def test_secrets_are_not_shown() -> None:
    key = PrivateKey(Algorithm.ED25519, b"secret--" * 4)
    key.sign(b"")
    assert "secret" not in repr(key)
    assert repr(key) == "<ED25519 private key>"
    assert repr(key.public) == "<ED25519 public key>"


@given(st.binary(max_size=80))
def test_arbitrary_bytes_as_keys(data: bytes) -> None:
    for decode in (PublicKey.decode, PrivateKey.decode):
        with suppress(ParseError):
            assert decode(data).encode() == data


@given(st.sampled_from(Algorithm), st.integers(0, 69), st.integers(1, 255))
def test_keys_with_a_byte_changed(algorithm: Algorithm, place: int, change: int) -> None:
    """A change in front of the raw key is an error, one in the key is another key."""
    prefix = len(algorithm.spki_prefix)
    data = bytearray(algorithm.spki_prefix + bytes(algorithm.key_size))
    place %= len(data)
    data[place] ^= change
    try:
        key = PublicKey.decode(bytes(data))
    except ParseError:
        assert place < prefix
    else:
        # X25519 and Ed25519, and nothing else, differ in one byte only.
        assert place >= prefix or {key.algorithm, algorithm} == {
            Algorithm.X25519,
            Algorithm.ED25519,
        }
        assert key.encode() == data


def test_small_order_points_give_a_secret_of_zeros() -> None:
    """As the reference, where PyNaCl's own function raises (vectors ``dh/x25519``)."""
    key = PrivateKey(Algorithm.X25519, det(32, "x25519/a"))
    assert key.exchange(PublicKey(Algorithm.X25519, bytes(32))) == bytes(32)
