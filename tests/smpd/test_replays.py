"""Which keys were seen before."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, strategies as st

from smpd.replays import SeenKeys

KEYS = st.binary(min_size=32, max_size=32)


@given(st.lists(KEYS, unique=True, max_size=60))
def test_a_key_is_seen_from_the_second_time_on(keys: list[bytes]) -> None:
    seen = SeenKeys(1000, b"secret")
    first = [seen.add(key) for key in keys]
    second = [seen.add(key) for key in keys]
    assert not any(first)
    assert all(second)
    assert not seen.is_full


@pytest.mark.parametrize("most", [1, 3, 4096, 4097, 30_000])
def test_as_many_are_remembered_as_were_asked_for(most: int) -> None:
    seen = SeenKeys(most, os.urandom(32))
    keys = [number.to_bytes(32, "big") for number in range(most)]
    for key in keys:
        assert not seen.is_full
        assert not seen.add(key)
    assert seen.is_full
    assert all(seen.add(key) for key in keys)


def test_what_comes_when_it_is_full_is_not_remembered() -> None:
    seen = SeenKeys(2, b"secret")
    assert not any([seen.add(b"a" * 32), seen.add(b"b" * 32), seen.add(b"c" * 32)])
    assert not seen.add(b"c" * 32)
    assert seen.add(b"a" * 32)


def test_new_keys_are_hardly_ever_taken_for_seen_ones() -> None:
    """At most once in a million times when it is full; of 200,000 that is 0.2."""
    seen = SeenKeys(20_000, b"secret")
    for number in range(20_000):
        seen.add(number.to_bytes(32, "big"))
    wrong = sum(
        seen.add(number.to_bytes(32, "little")) for number in range(1 << 200, (1 << 200) + 200_000)
    )
    assert wrong <= 3


def test_the_places_of_a_key_are_a_secret() -> None:
    """Else a proxy could make keys that have the places of others'."""
    one, other = SeenKeys(100, b"one"), SeenKeys(100, b"other")
    one.add(bytes(32))
    other.add(bytes(32))
    assert one._steps[0].bits != other._steps[0].bits
