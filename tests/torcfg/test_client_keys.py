"""Keys of clients that may reach an onion service."""

from __future__ import annotations

import base64
import os

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, strategies as st

from torcfg.client_keys import (
    NOBODY,
    ClientKey,
    authorized,
    is_client_name,
    read_authorized,
    read_public,
)
from torcfg.onion_keys import KeyFileError, OnionKey


@given(st.binary(min_size=32, max_size=32))
def test_a_file_gives_the_public_key_back(secret: bytes) -> None:
    key = ClientKey(secret)
    assert read_authorized(authorized(key.public)) == key.public
    public = X25519PrivateKey.from_private_bytes(secret).public_key()
    raw = public.public_bytes(Encoding.Raw, PublicFormat.Raw)
    assert base64.b32decode(key.public + "====") == raw


def test_nobodys_key_is_one() -> None:
    assert read_public(NOBODY) == NOBODY


def test_the_line_for_the_client() -> None:
    key, address = ClientKey.generate(os.urandom), OnionKey.generate(os.urandom).address
    name, kind, algorithm, secret = key.for_client(address).split(":")
    assert (name + ".onion", kind, algorithm) == (address, "descriptor", "x25519")
    assert base64.b32decode(secret + "====") == key.secret


@given(st.text(max_size=80))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(KeyFileError):
        read_authorized(text)


@pytest.mark.parametrize("key", ["", "AAAA", "A" * 51, "A" * 56, "0" * 52, "é" * 52])
def test_keys_that_are_none(key: str) -> None:
    with pytest.raises(KeyFileError):
        read_authorized(f"descriptor:x25519:{key}")


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("alice", True),
        ("a.b-c_2", True),
        ("", False),
        ("../a", False),
        (".a", False),
        ("a b", False),
    ],
)
def test_names(name: str, *, good: bool) -> None:
    assert is_client_name(name) is good


def test_the_secret_is_not_shown() -> None:
    key = ClientKey.generate(os.urandom)
    assert repr(key) == "ClientKey()"
