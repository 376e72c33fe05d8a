"""What the operator of a relay decides about queues and messages."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Rules:
    """The reference's values are the defaults (docs/spec/smp-server.md §4, §6, §7, §11).

    `password` is None when NEW needs none; times are in seconds.
    """

    new_queues: bool = True
    password: bytes | None = field(default=None, repr=False)
    quota: int = 128
    message_ttl: float = 21 * 86400
    expire_on_send: bool = False
    notification_ttl: float = 86400
