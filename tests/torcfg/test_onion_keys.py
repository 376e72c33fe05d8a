"""Keys and addresses of onion services."""

from __future__ import annotations

import hashlib
import os

import pytest
from hypothesis import given, strategies as st

from torcfg.onion_keys import KeyFileError, OnionKey, is_onion_address, onion_address

# RFC 8032, §7.1, test 1.
SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
ADDRESS = "25njqamcweflpvkl73j4szahhihoc4xt3ktcgjnpaingr5yhkenl5sid.onion"
# Of the Tor Project's own site.
SITE = "2gzyxa5ihm7nsggfxnu52rck2vv4rvmdlkiu3zzui5du4xyclen53wid.onion"

seeds = st.binary(min_size=32, max_size=32)


def test_the_address_of_a_key() -> None:
    key = OnionKey.generate(lambda size: SEED[:size])
    assert key.address == onion_address(PUBLIC) == ADDRESS


def test_the_key_as_tor_has_it() -> None:
    secret = bytearray(hashlib.sha512(SEED).digest())
    secret[0] &= 248
    secret[31] = secret[31] & 63 | 64
    content = b"== ed25519v1-secret: type0 ==\0\0\0" + secret
    key = OnionKey.decode(content)
    assert (key, key.address, key.encode()) == (OnionKey.generate(lambda _: SEED), ADDRESS, content)


@given(seeds)
def test_a_file_gives_the_key_back(seed: bytes) -> None:
    key = OnionKey.generate(lambda _: seed)
    again = OnionKey.decode(key.encode())
    assert (again, hash(again), again.address) == (key, hash(key), key.address)
    assert again != OnionKey.generate(os.urandom)
    assert key != key.encode()


@given(seeds)
def test_every_address_is_one(seed: bytes) -> None:
    address = OnionKey.generate(lambda _: seed).address
    assert len(address) == 62
    assert is_onion_address(address)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "onion",
        ".onion",
        "example.com",
        SITE.upper(),
        SITE + ".",
        "a." + SITE,
        SITE.replace("2", "3"),
        "a" * 56 + ".onion",
        SITE[:-1],
        SITE[1:],
        "é" * 56 + ".onion",
    ],
)
def test_what_is_no_address(text: str) -> None:
    assert is_onion_address(SITE)
    assert not is_onion_address(text)


@given(st.binary(max_size=200))
def test_any_other_file_is_refused(content: bytes) -> None:
    with pytest.raises(KeyFileError):
        OnionKey.decode(content)


def test_keys_that_are_none_of_ed25519() -> None:
    header, good = b"== ed25519v1-secret: type0 ==\0\0\0", OnionKey.generate(os.urandom).encode()
    secret = good.removeprefix(header)
    for wrong in (
        secret[:-1],
        secret + b"\0",
        bytes([secret[0] | 1]) + secret[1:],
        secret[:31] + bytes([secret[31] | 128]) + secret[32:],
        secret[:31] + bytes([secret[31] & 63]) + secret[32:],
    ):
        with pytest.raises(KeyFileError) as caught:
            OnionKey.decode(header + wrong)
        assert secret.hex()[:16] not in str(caught.value)


def test_the_secret_is_not_shown() -> None:
    assert repr(OnionKey.generate(os.urandom)) == "OnionKey(...)"
