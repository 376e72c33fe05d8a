"""What the operator of a relay decides about queues and messages."""

from __future__ import annotations

import math
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
    unused_ttl: float | None = None
    forwarded_keys: int = 250_000
    """Keys of commands that are remembered for each proxy's connection; 0 for none."""

    def messages_kept_since(self, now: float) -> int:
        """The second since 1970 whose messages, and all later ones, are kept at `now`."""
        return _kept_since(now, self.message_ttl)

    def notifications_kept_since(self, now: float) -> int:
        """The same for notifications."""
        return _kept_since(now, self.notification_ttl)


def _kept_since(now: float, ttl: float) -> int:
    # Times are kept in whole seconds, cut off: nothing may go because its fraction is not known.
    return int(now) - math.ceil(ttl)
