"""Boxes, authenticators and block chains: smp-wire.md §3, §7, §9.1, conformance 10, 11."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from hypothesis import given, strategies as st
from nacl.bindings import crypto_box_afternm, crypto_box_beforenm

from tests.txsimplex.vectors import Vector, det, load, name_of, same, value
from txsimplex import primitives
from txsimplex.boxes import (
    BLOCK_SIZE,
    BlockChain,
    BoxError,
    BoxKey,
    PlainBlocks,
    authenticator,
    block_chains,
    hkdf,
    nonce_from,
    reverse_nonce,
    verify_authenticator,
)
from txsimplex.encoding import LargeMessageError, ParseError
from txsimplex.keys import Algorithm, PrivateKey, PublicKey

KEY = bytes(range(32))
NONCE = bytes(range(100, 124))

secrets = st.binary(min_size=32, max_size=32)
nonces = st.binary(min_size=24, max_size=24)


def x25519(raw: str) -> PrivateKey:
    return PrivateKey(Algorithm.X25519, bytes.fromhex(raw))


def secret(private: str, public: str) -> bytes:
    return x25519(private).exchange(PublicKey(Algorithm.X25519, bytes.fromhex(public)))


def message_of(given: str | Vector) -> bytes:
    """A message of the vectors, which give the long ones by their size only."""
    return value(given) if isinstance(given, str) or "base64" in given else b"z" * given["len"]


def box_key(vector: Vector) -> BoxKey:
    return BoxKey(bytes.fromhex(vector["secret"] if "secret" in vector else vector["key"]))


def test_the_vector_of_the_specification() -> None:
    """smp-wire.md §3, conformance 11: not the plain secretbox of the same key."""
    assert primitives.hsalsa20(KEY).hex() == (
        "50088706d3e1cee8a5c0f12504d968443211cf12af4a4b49e5c874b3ef4f85e7"
    )
    sealed = BoxKey(KEY).seal(b"SimpleX", NONCE)
    assert sealed.hex() == "d65715bfef8c7e553333ee267bc337ba48feef433fa40a"
    plain = primitives.seal_easy(b"SimpleX", NONCE, KEY)
    assert plain.hex().startswith("47900ac4")


@pytest.mark.parametrize("vector", load("crypto", "box-dh-nopad", "box-sym-nopad"), ids=name_of)
def test_boxes_without_padding(vector: Vector) -> None:
    message, nonce = message_of(vector["msg"]), bytes.fromhex(vector["nonce"])
    key = box_key(vector)
    sealed = key.seal(message, nonce)
    assert same(vector["out"], sealed)
    assert key.open(sealed, nonce) == message


@pytest.mark.parametrize("vector", load("crypto", "box-dh-padded", "box-sym-padded"), ids=name_of)
def test_boxes_with_padding(vector: Vector) -> None:
    message, nonce = message_of(vector["msg"]), bytes.fromhex(vector["nonce"])
    key, size = box_key(vector), vector["padded_len"]
    if "error" in vector:
        with pytest.raises(LargeMessageError):
            key.seal_padded(message, nonce, size)
        return
    sealed = key.seal_padded(message, nonce, size)
    assert same(vector["ok"], sealed)
    assert len(sealed) == size + 16
    assert key.open_padded(sealed, nonce) == message


@pytest.mark.parametrize("vector", load("crypto", "unbox"), ids=name_of)
def test_boxes_that_open_or_not(vector: Vector) -> None:
    key, nonce = box_key(vector), bytes.fromhex(vector["nonce"])
    box = bytes.fromhex(vector["ciphertext"])
    faults = {"CBDecryptError": BoxError, "CryptoInvalidMsgError": ParseError}
    opened: list[tuple[Callable[[bytes, bytes], bytes], Vector]] = [
        (key.open, vector["nopad"]),
        (key.open_padded, vector["padded"]),
    ]
    for open_, result in opened:
        if "error" in result:
            with pytest.raises(faults[result["error"]]):
                open_(box, nonce)
        else:
            assert open_(box, nonce).hex() == result["ok"]


def test_boxes_between_two_parties() -> None:
    """Conformance 10."""
    ann = PrivateKey(Algorithm.X25519, det(32, "ann"))
    bob = PrivateKey(Algorithm.X25519, det(32, "bob"))
    sealed = BoxKey(ann.exchange(bob.public)).seal_padded(b"hello", NONCE, 100)
    assert BoxKey(bob.exchange(ann.public)).open_padded(sealed, NONCE) == b"hello"


@given(secrets, nonces, st.binary(max_size=300))
def test_boxes_are_those_of_nacl(private: bytes, nonce: bytes, message: bytes) -> None:
    """With a DH secret a box is the crypto_box of NaCl (§3)."""
    peer = PrivateKey(Algorithm.X25519, det(32, "peer"))
    key = PrivateKey(Algorithm.X25519, private)
    expected = crypto_box_afternm(message, nonce, crypto_box_beforenm(peer.public.raw, private))
    assert BoxKey(key.exchange(peer.public)).seal(message, nonce) == expected


@given(secrets, nonces, st.binary(max_size=300), st.integers(0, 400))
def test_round_trip(secret: bytes, nonce: bytes, message: bytes, more: int) -> None:
    key = BoxKey(secret)
    assert key.open(key.seal(message, nonce), nonce) == message
    size = len(message) + 2 + more
    sealed = key.seal_padded(message, nonce, size)
    assert len(sealed) == size + 16
    assert key.open_padded(sealed, nonce) == message


@given(st.binary(max_size=300), st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_is_noticed(message: bytes, place: int, change: int) -> None:
    key = BoxKey(KEY)
    box = bytearray(key.seal(message, NONCE))
    box[place % len(box)] ^= change
    with pytest.raises(BoxError):
        key.open(bytes(box), NONCE)


@given(st.binary(max_size=100))
def test_arbitrary_bytes_do_not_open(box: bytes) -> None:
    with pytest.raises(BoxError):
        BoxKey(KEY).open(box, NONCE)
    with pytest.raises(BoxError):
        BoxKey(KEY).open_padded(box, NONCE)


def test_sizes_that_no_box_has() -> None:
    with pytest.raises(ValueError, match="65535"):
        BoxKey(KEY).seal(bytes(65536), NONCE)
    assert BoxKey(KEY).open(BoxKey(KEY).seal(bytes(65535), NONCE), NONCE) == bytes(65535)
    with pytest.raises(BoxError):
        BoxKey(KEY).open(bytes(65536 + 16), NONCE)
    for size in (31, 33):
        with pytest.raises(ValueError, match="32"):
            BoxKey(bytes(size))


@pytest.mark.parametrize("vector", load("crypto", "authenticator"), ids=name_of)
def test_authenticators(vector: Vector) -> None:
    corr_id, authorized = bytes.fromhex(vector["corr_id"]), bytes.fromhex(vector["authorized"])
    given = bytes.fromhex(vector["authenticator"])
    assert nonce_from(corr_id).hex() == vector["nonce"]
    client = BoxKey(secret(vector["queue_private_raw"], vector["server_public_raw"]))
    server = BoxKey(secret(vector["server_private_raw"], vector["queue_public_raw"]))
    assert authenticator(client, corr_id, authorized) == given
    assert verify_authenticator(server, corr_id, authorized, given) is True
    assert vector["verified_by_server"] is True


@pytest.mark.parametrize("vector", load("crypto", "authenticator-verify"), ids=name_of)
def test_authenticators_right_or_wrong(vector: Vector) -> None:
    server = BoxKey(secret(vector["server_private_raw"], vector["queue_public_raw"]))
    verified = verify_authenticator(
        server,
        bytes.fromhex(vector["corr_id"]),
        bytes.fromhex(vector["authorized"]),
        bytes.fromhex(vector["authenticator"]),
    )
    assert verified is vector["valid"]


def test_the_authenticator_of_the_specification() -> None:
    """smp-wire.md §9.1."""
    session = PrivateKey(Algorithm.X25519, bytes(range(0x01, 0x21)))
    queue = PrivateKey(Algorithm.X25519, bytes(range(0x21, 0x41)))
    corr_id, entity_id = bytes(range(24)), bytes(range(0x32, 0x4A))
    authorized = b"\x20" + bytes(range(32)) + b"\x18" + corr_id + b"\x18" + entity_id + b"SUB"
    expected = bytes.fromhex(
        "d88275da996e3a1cbf46606207a59e10567234ef1e3acd7fa783d969329f3da2"
        "81a0261ffaba38611aa3b9528b571ea6fdc269f7e06f65cf5487c2d1f5bf9dca"
        "ba46eebd2cda908e3c796c635eadd7d9"
    )
    assert authenticator(BoxKey(queue.exchange(session.public)), corr_id, authorized) == expected
    key = BoxKey(session.exchange(queue.public))
    assert verify_authenticator(key, corr_id, authorized, expected)
    assert not verify_authenticator(key, corr_id, authorized + b"S", expected)


@pytest.mark.parametrize("vector", load("crypto", "cbnonce"), ids=name_of)
def test_nonces(vector: Vector) -> None:
    nonce = nonce_from(bytes.fromhex(vector["in"]))
    assert nonce.hex() == vector["nonce"]
    assert reverse_nonce(nonce).hex() == vector["reverse"]


@pytest.mark.parametrize("vector", load("crypto", "hkdf-sha512"), ids=name_of)
def test_hkdf(vector: Vector) -> None:
    salt, secret, info = (bytes.fromhex(vector[name]) for name in ("salt", "ikm", "info"))
    assert hkdf(salt, secret, info, vector["len"]).hex() == vector["out"]


@pytest.mark.parametrize("vector", load("crypto", "digest"), ids=name_of)
def test_digests(vector: Vector) -> None:
    """Those of `hashlib`, which code elsewhere uses by these names, and our SHA-512."""
    message = value(vector["msg"])
    for name in ("sha256", "sha512", "sha3_256", "sha3_384"):
        assert hashlib.new(name, message).hexdigest() == vector[name]
    assert hashlib.sha3_384(message).hexdigest()[:48] == vector["sender_id"]
    assert primitives.sha512(message).hexdigest() == vector["sha512"]
    assert primitives.short_sha512(message).hexdigest() == vector["sha512"]


@pytest.mark.parametrize("vector", load("crypto", "sbchain"), ids=name_of)
def test_chains(vector: Vector) -> None:
    session_id, secret = bytes.fromhex(vector["session_id"]), bytes.fromhex(vector["secret"])
    direction = ("server-to-client", "client-to-server").index(vector["direction"])

    def new() -> BlockChain:
        return block_chains(session_id, secret)[direction]

    chain, initial = new(), BlockChain(bytes.fromhex(vector["initial_chain_key"]))
    for step in vector["steps"]:
        expected = (bytes.fromhex(step["key"]), bytes.fromhex(step["nonce"]))
        assert chain.next_key() == initial.next_key() == expected
    sealing, opening = new(), new()
    for item in vector["blocks"]:
        content = value(item["content"])
        block = sealing.seal(content)
        assert same(item["block"], block)
        assert opening.open(block) == content


def test_the_chain_of_the_specification() -> None:
    """smp-wire.md §7."""
    session_id, secret = bytes(range(32)), bytes(range(0xC8, 0xE8))
    keys = hkdf(session_id, secret, b"SimpleXSbChainInit", 64)
    assert keys[:32].hex() == "df2b820a1329768290c0d60918568041c3782489d9fdcad1c908eb4240af9d68"
    assert keys[32:].hex() == "0b222a1ea3f5da62b393c1ddb58c38d45ce183ac3a3aeefddf2b9ccc02c2b9dd"
    key, nonce = BlockChain(keys[:32]).next_key()
    assert key.hex() == "38afbed483cf39719082c4a5db77dc33e8b0d98025a3357fba92e7e92f99b759"
    assert nonce.hex() == "97e9aa2a4ce7c04cc9d61a0db9822fd3cb1e4f30a32cde77"
    block = block_chains(session_id, secret)[0].seal(b"PING")
    assert block[:16].hex() == "1d4f36f31a60a982dee1cf0af16010bc"
    assert hashlib.sha256(block).hexdigest() == (
        "ef04cb1a2e3188f8160797dba4860823047c6663cf474d7ed0acd9bbc7eb3de8"
    )


@given(st.binary(min_size=32, max_size=32))
def test_a_step_of_the_chain_is_hkdf(chain_key: bytes) -> None:
    output = hkdf(b"", chain_key, b"SimpleXSbChain", 88)
    chain = BlockChain(chain_key)
    assert chain.next_key() == (output[32:64], output[64:88])
    assert chain.next_key() == BlockChain(output[:32]).next_key()


@given(st.lists(st.binary(max_size=100) | st.binary(max_size=100).map(lambda b: b * 163)))
def test_blocks_in_a_row(contents: list[bytes]) -> None:
    sealing, opening = BlockChain(KEY), BlockChain(KEY)
    plain = PlainBlocks()
    for content in contents:
        block = sealing.seal(content)
        assert len(block) == len(plain.seal(content)) == BLOCK_SIZE
        assert opening.open(block) == content
        assert plain.open(plain.seal(content)) == content


def test_the_chain_goes_on_after_a_block_that_does_not_open() -> None:
    """§7: the chain advances with every block."""
    sealing, opening = BlockChain(KEY), BlockChain(KEY)
    blocks = [sealing.seal(b"1"), sealing.seal(b"2"), sealing.seal(b"3"), sealing.seal(b"4")]
    assert opening.open(blocks[0]) == b"1"
    with pytest.raises(BoxError):
        opening.open(bytes(BLOCK_SIZE))
    assert opening.open(blocks[2]) == b"3"
    with pytest.raises(BoxError):
        opening.open(blocks[2])


def test_a_block_whose_length_lies() -> None:
    key, nonce = BlockChain(KEY).next_key()
    block = BoxKey(key).seal(b"\xff\xff" + bytes(16366), nonce)
    with pytest.raises(ParseError):
        BlockChain(KEY).open(block)
    with pytest.raises(ParseError):
        PlainBlocks().open(b"\xff\xff" + bytes(16382))


def test_contents_too_large_for_a_block() -> None:
    """A content that is refused does not advance the chain, since the other side gets nothing."""
    chain = BlockChain(KEY)
    with pytest.raises(LargeMessageError):
        chain.seal(bytes(16367))
    assert chain.seal(bytes(16366)) == BlockChain(KEY).seal(bytes(16366))
    with pytest.raises(LargeMessageError):
        PlainBlocks().seal(bytes(16383))
    assert len(PlainBlocks().seal(bytes(16382))) == BLOCK_SIZE


def test_secrets_are_not_shown() -> None:
    assert repr(BoxKey(KEY)) == "<BoxKey>"
    assert repr(BlockChain(KEY)) == "<BlockChain>"


def test_primitives_without_what_libsodium_lacks() -> None:
    """A libsodium that lacks a function is named when the module is imported."""
    with pytest.raises(ImportError, match="does not export crypto_nonsense"):
        primitives._function("crypto_nonsense")
