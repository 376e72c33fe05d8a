"""Commands that go by way of a proxy (smp-proxy.md §2, §3)."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from tests.txsimplex.vectors import Vector, load, name_of, same
from txsimplex.boxes import BoxError, BoxKey
from txsimplex.encoding import LargeMessageError, ParseError, short
from txsimplex.keys import Algorithm, PrivateKey, PublicKey
from txsimplex.smp.commands import Pfwd, Rfwd
from txsimplex.smp.forwarding import (
    FORWARDED_SIZE,
    SEALED_FORWARDED_SIZE,
    Forwarded,
    open_answer,
    open_forwarded,
    open_rfwd,
    open_rres,
    seal_answer,
    seal_forwarded,
    seal_rfwd,
    seal_rres,
)
from txsimplex.smp.messages import Pres, Rres
from txsimplex.smp.transmissions import Framing, frame

PROXIED = load("smp_bodies", "proxy")


def _hex(vector: Vector, name: str) -> bytes:
    return bytes.fromhex(vector[name])


def _key(vector: Vector, name: str) -> PrivateKey:
    return PrivateKey(Algorithm.X25519, _hex(vector, name))


@pytest.mark.parametrize("vector", PROXIED, ids=name_of)
def test_all_four_layers_as_the_reference_makes_them(vector: Vector) -> None:
    command_key = _key(vector, "cmd_private_raw")
    relay_key = _key(vector, "relay_session_private_raw")
    secret = command_key.exchange(relay_key.public)
    assert secret == _hex(vector, "client_secret")
    proxy_secret = _key(vector, "proxy_session_private_raw").exchange(relay_key.public)
    assert proxy_secret == _hex(vector, "proxy_relay_secret")
    senders, proxys = BoxKey(secret), BoxKey(proxy_secret)
    nonce, proxy_nonce = _hex(vector, "nonce"), _hex(vector, "nonce2")
    version = vector["fwd_version"]

    sealed = seal_forwarded(senders, nonce, _hex(vector, "inner"))
    assert same(vector["enc_transmission"], sealed)
    pfwd = Pfwd(version, command_key.public, sealed)
    assert same(vector["pfwd_command"], pfwd.encode(vector["client_proxy_version"]))
    session_id = _hex(vector, "relay_session_id")
    outer = Framing(18, b"\0" * 32)
    content = frame([outer.transmission(outer.authorized(nonce, session_id, pfwd.encode(18)), b"")])
    assert same(vector["pfwd_block_content"], content)

    forwarded = Forwarded(nonce, version, command_key.public, sealed)
    assert same(vector["fwd_transmission"], forwarded.encode())
    rfwd = seal_rfwd(proxys, proxy_nonce, forwarded)
    assert same(vector["enc_fwd_transmission"], rfwd)
    command = Rfwd(rfwd).encode(18)
    content = frame([outer.transmission(outer.authorized(proxy_nonce, b"", command), b"")])
    assert same(vector["rfwd_block_content"], content)
    assert Forwarded.decode(open_rfwd(proxys, proxy_nonce, rfwd)) == forwarded
    assert open_forwarded(senders, nonce, sealed) == _hex(vector, "inner")

    answer = seal_answer(senders, nonce, _hex(vector, "inner_response"))
    assert same(vector["enc_response"], answer)
    rres = seal_rres(proxys, proxy_nonce, nonce, answer)
    assert same(vector["enc_fwd_response"], rres)
    header = short(proxy_nonce) + short(b"")
    content = frame([outer.answer(header, Rres(rres).encode(18))])
    assert same(vector["rres_block_content"], content)
    assert open_rres(proxys, proxy_nonce, rres) == answer
    header = short(nonce) + short(session_id)
    content = frame([outer.answer(header, Pres(answer).encode(18))])
    assert same(vector["pres_block_content"], content)
    assert open_answer(senders, nonce, answer) == _hex(vector, "inner_response")


KEYS = st.binary(min_size=32, max_size=32)
NONCES = st.binary(min_size=24, max_size=24)


@given(KEYS, NONCES, st.binary(max_size=100))
def test_what_was_sealed_opens(secret: bytes, nonce: bytes, content: bytes) -> None:
    key = BoxKey(secret)
    sealed, answer = seal_forwarded(key, nonce, content), seal_answer(key, nonce, content)
    assert len(sealed) == len(answer) == SEALED_FORWARDED_SIZE
    assert open_forwarded(key, nonce, sealed) == open_answer(key, nonce, answer) == content
    if nonce != nonce[::-1]:
        assert sealed != answer
        with pytest.raises(BoxError):
            open_answer(key, nonce, sealed)


@given(KEYS, NONCES, st.binary(max_size=255), st.integers(0, 65535), st.binary(max_size=99))
def test_what_a_proxy_passes_on_is_read_again(
    raw: bytes, nonce: bytes, corr_id: bytes, version: int, sealed: bytes
) -> None:
    key = BoxKey(raw)
    forwarded = Forwarded(corr_id, version, PublicKey(Algorithm.X25519, raw), sealed)
    assert Forwarded.decode(open_rfwd(key, nonce, seal_rfwd(key, nonce, forwarded))) == forwarded
    assert open_rres(key, nonce, seal_rres(key, nonce, corr_id, sealed)) == sealed


@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        forwarded = Forwarded.decode(data)
    except ParseError:
        return
    assert forwarded.encode() == data


def test_a_content_that_does_not_fit_is_refused() -> None:
    key, nonce = BoxKey(bytes(32)), bytes(24)
    seal_forwarded(key, nonce, bytes(FORWARDED_SIZE - 2))
    with pytest.raises(LargeMessageError):
        seal_forwarded(key, nonce, bytes(FORWARDED_SIZE - 1))
