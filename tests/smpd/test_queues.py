"""Records of queues (docs/spec/smp-server.md §1, §3.1, §6)."""

from __future__ import annotations

import pytest

from smpd.queues import DAY, ID_SIZE, Message, Messages, day_of, new_id
from tests.smpd.people import key
from tests.smpd.stores.records import message, new_queue
from txsimplex.boxes import BoxKey
from txsimplex.smp.commands import QueueMode

MESSAGING, CONTACT = QueueMode.MESSAGING, QueueMode.CONTACT


@pytest.mark.parametrize(
    ("mode", "secured", "contact", "secured_messaging"),
    [
        (MESSAGING, False, False, False),
        (MESSAGING, True, False, True),
        (CONTACT, False, True, False),
        (CONTACT, True, True, False),
        (None, False, True, False),
        (None, True, False, True),
    ],
)
def test_what_a_queue_is_for(
    mode: QueueMode | None, secured: bool, contact: bool, secured_messaging: bool
) -> None:
    queue = new_queue(mode=mode)
    if secured:
        queue.sender_key = key().public
    assert queue.is_contact is contact
    assert queue.is_secured_messaging is secured_messaging


@pytest.mark.parametrize("now", [0, 0.9, 86399.999, 86400, 1_700_000_000.5])
def test_days_are_of_utc(now: float) -> None:
    day = day_of(now)
    assert day % DAY == 0
    assert day <= now < day + DAY
    assert isinstance(day, int)


def test_ids_are_random() -> None:
    asked: list[int] = []

    def random(size: int) -> bytes:
        asked.append(size)
        return b"r" * size

    assert new_id(random) == b"r" * ID_SIZE
    assert asked == [24]


def test_the_key_of_a_queue_is_made_ready_once() -> None:
    queue = new_queue()
    assert queue.box is queue.box
    nonce = bytes(24)
    assert queue.box.seal(b"x", nonce) == BoxKey(queue.secret).seal(b"x", nonce)


def test_the_marker_keeps_id_and_time_of_what_was_refused() -> None:
    """§6."""
    messages = Messages()
    refused = message(5, b"refused", notify=True)
    assert messages.write(message(), 1)
    assert not messages.write(refused, 1)
    marker = messages.waiting[-1]
    assert marker == Message(refused.msg_id, 5, False, None)
    assert marker.is_quota
    assert not refused.is_quota
    assert not message(5, b"").is_quota
