"""How long messages are kept, where their times are whole seconds."""

from __future__ import annotations

from hypothesis import given, strategies as st

from smpd.rules import Rules

TIMES = st.floats(0, 4e9, allow_nan=False)
LIMITS = st.floats(0.01, 1e9, allow_nan=False)


@given(TIMES, LIMITS)
def test_nothing_goes_before_its_time(now: float, ttl: float) -> None:
    rules = Rules(message_ttl=ttl, notification_ttl=ttl)
    since = rules.messages_kept_since(now)
    assert rules.notifications_kept_since(now) == since
    # What came as late as it may in the last second that goes.
    assert since <= now - ttl + 1e-6


@given(TIMES, LIMITS)
def test_everything_goes_two_seconds_after_its_time(now: float, ttl: float) -> None:
    assert Rules(message_ttl=ttl).messages_kept_since(now) > now - ttl - 2


def test_whole_seconds() -> None:
    """A time limit of whole seconds keeps what is exactly as old."""
    rules = Rules(message_ttl=10)
    assert rules.messages_kept_since(1_700_000_000.0) == 1_699_999_990
    assert rules.messages_kept_since(1_700_000_000.9) == 1_699_999_990
