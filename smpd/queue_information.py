"""The answer to QUE (docs/spec/smp-wire.md §14.4)."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

from smpd.peers import Subscription
from smpd.queues import Message, Queue


def queue_information(
    queue: Queue, head: Message | None, size: int, subscription: Subscription | None
) -> dict[str, Any]:
    """The members of INFO; `subscription` is that of the connection that asks."""
    information: dict[str, Any] = {
        "qiSnd": queue.sender_key is not None,
        "qiNtf": queue.notifier is not None,
    }
    if subscription is not None:
        information["qiSub"] = _subscription(subscription)
    information["qiSize"] = size
    if head is not None:
        information["qiMsg"] = {
            "msgId": _base64(head.msg_id),
            "msgTs": datetime.fromtimestamp(head.timestamp, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "msgType": "quota" if head.is_quota else "message",
        }
    return information


def _subscription(subscription: Subscription) -> dict[str, str]:
    if subscription.getter:
        state = "prohibitSub"
    elif subscription.waits:
        state = "subPending"
    else:
        state = "noSub"
    members = {"qSubThread": state}
    if subscription.delivered is not None:
        members["qDelivered"] = _base64(subscription.delivered)
    return members


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
