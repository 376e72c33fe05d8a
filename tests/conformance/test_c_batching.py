"""Conformance C: how transmissions share blocks."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, strategies as st
from pytest_twisted import ensureDeferred

from tests.conformance.clients import Relay, err, new_id, new_key
from txsimplex.client.signing import Signer
from txsimplex.encoding import u16
from txsimplex.keys import Algorithm
from txsimplex.smp.commands import Send, Sub
from txsimplex.smp.messages import End, Nmsg, Pong
from txsimplex.smp.transmissions import Framing, Received, TooLarge, cut, frame, pack
from txsimplex.smp.versions import IMPLIED_SESSION

CURRENT = 18
KEY = new_key(Algorithm.ED25519)
SENDER_KEY = new_key(Algorithm.X25519)
RELAY_KEY = new_key(Algorithm.X25519).public


def sub(version: int = CURRENT) -> bytes:
    """SUB signed with Ed25519."""
    signer = Signer(Framing(version, bytes(32)), None)
    return signer.transmission(new_id(), new_id(), Sub().encode(version), KEY)


def send(size: int, version: int = CURRENT) -> bytes:
    """SEND of so many bytes, authorised as apps do: by X25519 since version 7."""
    signer = Signer(Framing(version, bytes(32)), RELAY_KEY)
    command = Send(False, bytes(size)).encode(version)
    key = SENDER_KEY if version >= IMPLIED_SESSION else KEY
    return signer.transmission(new_id(), new_id(), command, key)


def counts(transmissions: Sequence[bytes]) -> list[int | str]:
    """How many transmissions each block has; "error" where one fits into none."""
    return [
        "error" if isinstance(block, TooLarge) else len(cut(block)) for block in pack(transmissions)
    ]


def test_045_subs_of_the_current_version() -> None:
    assert counts([sub() for _ in range(300)]) == [30, 135, 135]


def test_046_subs_of_version_6() -> None:
    assert counts([sub(6) for _ in range(250)]) == [38, 106, 106]


@pytest.mark.parametrize(("version", "expected"), [(CURRENT, [33, 68]), (6, [47, 54])])
def test_047_subs_with_a_send_between(version: int, expected: list[int]) -> None:
    before = [sub(version) for _ in range(60)]
    after = [sub(version) for _ in range(40)]
    assert counts([*before, send(8000, version), *after]) == expected


def test_048_too_large_between_others() -> None:
    """Its place among the transmissions is told, and the others keep their order."""
    before, after = [sub() for _ in range(60)], [sub() for _ in range(150)]
    transmissions = [*before, send(17000), *after]
    assert counts(transmissions) == [60, "error", 15, 135]
    blocks = pack(transmissions)
    assert blocks[1] == TooLarge(60)
    packed = [
        block[start:end]
        for block in blocks
        if not isinstance(block, TooLarge)
        for start, end in cut(block)
    ]
    assert packed == [*before, *after]


def test_049_too_large_at_the_beginning() -> None:
    assert counts([send(17000), *(sub() for _ in range(210))]) == ["error", 75, 135]


def test_050_end_events() -> None:
    framing = Framing(CURRENT, bytes(32))
    events = [framing.event(new_id(), End().encode(CURRENT)) for _ in range(300)]
    assert counts(events) == [45, 255]


def test_051_notifications() -> None:
    framing = Framing(CURRENT, bytes(32))
    message = Nmsg(bytes(24), bytes(144)).encode(CURRENT)
    assert counts([framing.event(new_id(), message) for _ in range(200)]) == [40, 80, 80]


@given(st.lists(st.integers(0, 400).map(bytes), max_size=600))
def test_052_largest_content(transmissions: list[bytes]) -> None:
    for block in pack(transmissions):
        assert isinstance(block, bytes)
        assert len(block) <= 16382
        assert 1 <= len(cut(block)) <= 255


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=255))
def test_053_content_of_blocks(transmissions: list[bytes]) -> None:
    content = frame(transmissions)
    assert content[0] == len(transmissions)
    assert content[1:] == b"".join(u16(len(each)) + each for each in transmissions)


@ensureDeferred
async def test_053_a_single_transmission_has_a_count(relay: Relay) -> None:
    client = await relay.raw()
    client.send_content(b"\1" + u16(8) + b"\0\1c\0PING")
    assert await client.next_content() == b"\1" + u16(8) + b"\0\1c\0PONG"


@ensureDeferred
async def test_054_count_of_zero(relay: Relay) -> None:
    client = await relay.raw()
    for content in (b"\0", b"\0" + u16(4) + b"PING"):
        client.send_content(content)
        assert await client.next_batch() == [Received(b"", b"", err("BLOCK"))]
    assert await client.request(b"PING", corr_id=b"c") == Received(b"c", b"", Pong())
