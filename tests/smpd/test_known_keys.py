"""What an edge verifies before the core is asked."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from smpd.channel import NO_PROOFS, decode_proofs
from smpd.known_keys import KnownKeys
from smpd.peers import Peer
from tests.smpd.people import Person, key, new_relay, random
from txsimplex.keys import Algorithm
from txsimplex.smp import commands as c
from txsimplex.smp.transmissions import Framing, Proof, frame

ENTITY = bytes(range(24))


@pytest.mark.parametrize("version", [6, 9, 15, 18])
@pytest.mark.parametrize("algorithm", [Algorithm.ED25519, Algorithm.ED448, Algorithm.X25519])
def test_a_right_and_a_wrong_authenticator(algorithm: Algorithm, version: int) -> None:
    person, private, other = Person(new_relay(), version), key(algorithm), key(algorithm)
    keys = KnownKeys()
    keys.learn(ENTITY, private.public)
    for signer, right in ((private, True), (other, False), (private, True)):
        content = frame([person.transmission(c.Sub(), ENTITY, signer)])
        proofs, start = decode_proofs(keys.proofs(person.peer, content) + content)
        assert proofs == [Proof(right, private.public.raw)]
        assert start == 3 + algorithm.key_size


def test_nothing_is_said_of_what_is_not_known() -> None:
    person, private = Person(new_relay()), key()
    keys = KnownKeys()
    keys.learn(ENTITY, private.public)
    for transmission in (
        person.transmission(c.Sub(), random(24), private),
        person.transmission(c.Ping()),
        person.transmission(c.Send(False, b"hello"), ENTITY),
        person.transmission(c.Sub(), ENTITY, key(Algorithm.ED448)),
        person.transmission(c.New(private.public, key(Algorithm.X25519).public), b"", private),
    ):
        assert keys.proofs(person.peer, frame([transmission])) == NO_PROOFS


def test_each_command_of_a_block_has_its_own() -> None:
    person, private = Person(new_relay()), key()
    keys = KnownKeys()
    keys.learn(ENTITY, private.public)
    content = frame(
        [
            person.transmission(c.Ping()),
            person.transmission(c.Sub(), ENTITY, private),
            person.transmission(c.Sub(), ENTITY, key()),
        ]
    )
    raw = private.public.raw
    assert decode_proofs(keys.proofs(person.peer, content))[0] == [
        None,
        Proof(True, raw),
        Proof(False, raw),
    ]


def test_a_service_signs_with_its_fingerprint() -> None:
    person, private = Person(new_relay(), service=c.Role.NOTIFIER), key()
    keys = KnownKeys()
    keys.learn(ENTITY, private.public)
    content = frame([person.transmission(c.Nsub(), ENTITY, private)])
    assert decode_proofs(keys.proofs(person.peer, content))[0] == [Proof(True, private.public.raw)]


def test_the_key_that_was_not_used_for_the_longest_time_is_forgotten() -> None:
    person, private = Person(new_relay()), key()
    keys = KnownKeys(2)

    def known(entity_id: bytes) -> bool:
        content = frame([person.transmission(c.Sub(), entity_id, private)])
        return keys.proofs(person.peer, content) != NO_PROOFS

    first, second, third = random(24), random(24), random(24)
    keys.learn(first, private.public)
    keys.learn(second, private.public)
    assert known(first)
    keys.learn(third, private.public)
    assert [known(each) for each in (first, second, third)] == [True, False, True]
    keys.learn(first, private.public)
    assert known(third)


@given(st.sampled_from([6, 10, 18]), st.binary(max_size=300), st.booleans())
def test_any_content_gives_proofs(version: int, content: bytes, framed: bool) -> None:
    """Whatever a client sends, an edge passes it on."""
    person = Person(new_relay())
    peer = Peer(Framing(version, random(32)), key(Algorithm.X25519), person)
    keys = KnownKeys()
    keys.learn(b"", key().public)
    if framed:
        content = frame([content])
    proofs, start = decode_proofs(keys.proofs(peer, content) + content)
    assert (proofs, start) == ([], 1)
