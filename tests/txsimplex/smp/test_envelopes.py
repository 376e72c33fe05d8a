"""Envelopes of clients: smp-agent.md §8.1, §8.2, against smp_bodies.json."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from tests.txsimplex.smp.strategies import auth_keys, dh_keys, mutated
from tests.txsimplex.vectors import Vector, load, name_of, same
from txsimplex.boxes import BoxError, BoxKey
from txsimplex.encoding import LargeMessageError, ParseError
from txsimplex.keys import Algorithm, PrivateKey, PublicKey
from txsimplex.smp.envelopes import (
    CONFIRMATION_SIZE,
    MESSAGE_SIZE,
    ClientEnvelope,
    ClientMessage,
    open_envelope,
    seal_envelope,
)
from txsimplex.smp.versions import max_message_length

KEY = BoxKey(bytes(range(32)))

client_messages = st.builds(ClientMessage, st.binary(max_size=60), st.none() | auth_keys)
client_envelopes = st.builds(
    ClientEnvelope,
    st.integers(0, 65535),
    st.binary(min_size=24, max_size=24),
    st.binary(max_size=60),
    st.none() | dh_keys,
)


def key_of(given: str | None) -> PublicKey | None:
    return None if given is None else PublicKey.decode(bytes.fromhex(given))


@pytest.mark.parametrize("vector", load("smp_bodies", "client-envelope"), ids=name_of)
def test_envelopes(vector: Vector) -> None:
    envelope = ClientEnvelope(
        vector["version"],
        bytes.fromhex(vector["nonce"]),
        bytes.fromhex(vector["enc_body"]),
        key_of(vector["dh_key"]),
    )
    assert envelope.encode().hex() == vector["encoded"]
    assert ClientEnvelope.decode(bytes.fromhex(vector["encoded"])) == envelope


@pytest.mark.parametrize("vector", load("smp_bodies", "client-message"), ids=name_of)
def test_messages(vector: Vector) -> None:
    message = ClientMessage(bytes.fromhex(vector["body"]), key_of(vector["key"]))
    assert message.encode().hex() == vector["encoded"]
    assert ClientMessage.decode(bytes.fromhex(vector["encoded"])) == message


@pytest.mark.parametrize("vector", load("smp_bodies", "client-e2e"), ids=name_of)
def test_sealed_envelopes(vector: Vector) -> None:
    sender = PrivateKey(Algorithm.X25519, bytes.fromhex(vector["sender_private_raw"]))
    recipient = PublicKey.decode(bytes.fromhex(vector["recipient_public_spki"]))
    secret = sender.exchange(recipient)
    assert secret.hex() == vector["secret"]
    message = ClientMessage.decode(bytes.fromhex(vector["client_message"]))
    confirmation = vector["padded_len"] == CONFIRMATION_SIZE
    assert vector["padded_len"] in (CONFIRMATION_SIZE, MESSAGE_SIZE)
    nonce = bytes.fromhex(vector["nonce"])
    envelope = seal_envelope(
        BoxKey(secret), 4, nonce, message, sender.public if confirmation else None
    )
    assert same(vector["envelope"], envelope.encode())
    assert open_envelope(BoxKey(secret), envelope) == message


def test_envelopes_fit_into_a_message() -> None:
    """Both sizes leave SEND of every version room enough (smp-wire.md §14.1)."""
    key = PublicKey(Algorithm.X25519, bytes(32))
    for dh_key in (None, key):
        sealed = seal_envelope(KEY, 4, bytes(24), ClientMessage(b""), dh_key).encode()
        assert len(sealed) <= max_message_length(18)
    with pytest.raises(LargeMessageError):
        seal_envelope(KEY, 4, bytes(24), ClientMessage(bytes(MESSAGE_SIZE - 2)))


@given(client_messages, client_envelopes)
def test_round_trip(message: ClientMessage, envelope: ClientEnvelope) -> None:
    assert ClientMessage.decode(message.encode()) == message
    assert ClientEnvelope.decode(envelope.encode()) == envelope


@given(st.binary(max_size=80) | mutated(client_messages.map(ClientMessage.encode)))
def test_arbitrary_bytes_as_a_message(data: bytes) -> None:
    try:
        message = ClientMessage.decode(data)
    except ParseError:
        return
    assert message.encode() == data


@given(st.binary(max_size=80) | mutated(client_envelopes.map(ClientEnvelope.encode)))
def test_arbitrary_bytes_as_an_envelope(data: bytes) -> None:
    try:
        envelope = ClientEnvelope.decode(data)
    except ParseError:
        return
    assert envelope.encode() == data
    with pytest.raises(BoxError):
        open_envelope(KEY, envelope)
