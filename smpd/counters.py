"""What the relay counts (docs/spec/smp-server.md §14): numbers, and nothing about anybody."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Since the start of the process. A name says which command or event it counts."""

    queues_created: int = 0
    queues_secured: int = 0
    queues_deleted: int = 0
    queues_deleted_new: int = 0
    queues_deleted_secured: int = 0
    queues_deleted_batches: int = 0
    queues_blocked: int = 0
    queues_expired: int = 0
    """Queues removed since nobody used them."""
    subscriptions: int = 0
    """Subscriptions that delivered a message."""
    subscriptions_auth: int = 0
    subscriptions_duplicate: int = 0
    subscriptions_prohibited: int = 0
    subscription_batches: int = 0
    subscriptions_ended: int = 0
    subscriptions_ended_batches: int = 0
    notifiers_created: int = 0
    notifiers_created_new: int = 0
    """Notifiers created by NEW."""
    notifiers_deleted: int = 0
    notifiers_deleted_batches: int = 0
    notifier_subscriptions: int = 0
    notifier_subscriptions_auth: int = 0
    notifier_subscriptions_duplicate: int = 0
    notifier_subscription_batches: int = 0
    messages_sent: int = 0
    messages_sent_auth: int = 0
    messages_sent_quota: int = 0
    messages_sent_large: int = 0
    messages_sent_blocked: int = 0
    messages_sent_notify: int = 0
    messages_received: int = 0
    messages_received_get: int = 0
    messages_received_notify: int = 0
    messages_got: int = 0
    messages_got_none: int = 0
    messages_got_auth: int = 0
    messages_got_duplicate: int = 0
    messages_got_prohibited: int = 0
    messages_expired: int = 0
    notifications_sent: int = 0
    notifications_sent_batches: int = 0
    notifications_expired: int = 0
    relays_asked: int = 0
    """Sessions with relays that senders asked this one for, as a proxy; the next are of these."""
    relays_connected: int = 0
    relays_unreachable: int = 0
    relays_incompatible: int = 0
    relays_failed: int = 0
    forwards: int = 0
    """Commands that senders gave to this relay, as a proxy; the next ones are of these."""
    forwards_answered: int = 0
    forwards_unknown: int = 0
    """For sessions that are not there."""
    forwards_incompatible: int = 0
    forwards_failed: int = 0
    own_relays_asked: int = 0
    """The same for relays of the operator's own domains."""
    own_relays_connected: int = 0
    own_relays_unreachable: int = 0
    own_relays_incompatible: int = 0
    own_relays_failed: int = 0
    own_forwards: int = 0
    own_forwards_answered: int = 0
    own_forwards_incompatible: int = 0
    own_forwards_failed: int = 0
    forwarded_received: int = 0
    """Commands that came by way of a proxy and were answered."""
