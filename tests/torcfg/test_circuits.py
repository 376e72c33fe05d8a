"""Circuits of an onion service, as tor tells them, and the connections of each."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv6Address

import pytest
from hypothesis import given, strategies as st

from torcfg.circuits import Circuits, circuit_of


@given(st.integers(0, 2**32 - 1))
def test_a_circuit_is_known_by_its_number(number: int) -> None:
    """The form of tor(1), which does not shorten it as others do."""
    assert circuit_of(f"fc00:dead:beef:4dad::{number >> 16:x}:{number & 0xFFFF:x}") == number


@given(st.ip_addresses(v=6))
def test_no_other_address_is_a_circuit(address: IPv6Address) -> None:
    assert circuit_of(str(address)) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "192.0.2.1",
        "::1",
        "fc00:dead:beef:4dad::g",
        "fc00:dead:beef:4dae::1",
        "fc00:dead:beef::1",
    ],
)
def test_what_is_no_circuit(text: str) -> None:
    assert circuit_of(text) is None


@given(st.text())
def test_any_text_is_a_circuit_or_not(text: str) -> None:
    assert circuit_of(text) is None


def test_a_circuit_has_enough() -> None:
    circuits = Circuits(2)
    assert [circuits.enter(7) for _ in range(3)] == [True, True, False]
    assert circuits.enter(8)
    assert (circuits.connections, circuits.count) == (3, 2)
    circuits.leave(7)
    assert circuits.enter(7)
    assert not circuits.enter(7)


def test_without_a_limit_they_are_counted_all_the_same() -> None:
    circuits = Circuits()
    assert all(circuits.enter(number % 3) for number in range(1000))
    assert (circuits.connections, circuits.count) == (1000, 3)


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="fewer than none"):
        Circuits(-1)
    circuits = Circuits()
    with pytest.raises(ValueError, match="without connections"):
        circuits.leave(1)
    assert (circuits.connections, circuits.count) == (0, 0)


@given(st.integers(0, 4), st.lists(st.tuples(st.booleans(), st.integers(0, 3))))
def test_they_come_and_go(most: int, events: list[tuple[bool, int]]) -> None:
    """As a list of connections would have it; nothing is kept of circuits that are gone."""
    circuits = Circuits(most)
    there: Counter[int] = Counter()
    for comes, circuit in events:
        if comes:
            fits = not most or there[circuit] < most
            assert circuits.enter(circuit) == fits
            there[circuit] += fits
        elif there[circuit]:
            circuits.leave(circuit)
            there[circuit] -= 1
        assert circuits.connections == there.total()
        assert circuits.count == len(+there)
    for circuit in +there:
        for _ in range(there[circuit]):
            circuits.leave(circuit)
    assert (circuits.connections, circuits._of) == (0, {})
