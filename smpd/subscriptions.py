"""Who listens to which queue, and the delivery of messages (docs/spec/smp-server.md §5).

One connection at most is subscribed to a queue, and has one message at most that
it has not acknowledged. GET stands beside: it asks without subscribing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from smpd.counters import Counters
from smpd.peers import Peer, Subscription
from smpd.queues import Message, Queue
from smpd.stores.interface import Store, StoreError, Wanted, What
from txsimplex.encoding import short
from txsimplex.smp import errors
from txsimplex.smp.bodies import encode_quota_body, seal_body, seal_message
from txsimplex.smp.messages import Deld, End, Ends
from txsimplex.smp.transmissions import MAX_TRANSMISSIONS

Delay = Callable[[Callable[[], None]], None]
"""Calls what it is given some time later."""

_END = End()
_DELETED = Deld()
_MANY = 100
"""Queues that are asked for together."""


def sealed_message(queue: Queue, message: Message) -> tuple[bytes, bytes]:
    """MSG with `message` encrypted to the recipient, in two parts (smp-wire.md §14.2)."""
    msg_id, timestamp, body = message.msg_id, message.timestamp, message.body
    if body is None:
        sealed = seal_body(queue.box, msg_id, encode_quota_body(timestamp))
    else:
        sealed = seal_message(queue.box, msg_id, timestamp, message.notify, body)
    return b"MSG " + short(msg_id), sealed


class Subscriptions:
    """The subscriptions of all connections.

    With a `delay`, messages that are sent to a queue with a subscriber are delivered after it.
    What the subscriber asks for (SUB, GET, ACK) it gets at once: it tells nothing of when
    the message was sent.
    """

    def __init__(self, store: Store, counters: Counters, delay: Delay | None = None) -> None:
        self._store = store
        self._delay = delay
        self._counters = counters
        self._current: dict[bytes, Subscription] = {}
        self._events: dict[Peer, dict[bytes, bytes]] = {}
        self._failed: set[Peer] = set()

    # -- subscribing

    def subscribe(self, peer: Peer, queue: Queue) -> Subscription:
        """Makes `peer` the only subscriber of `queue`; a former one will be sent END."""
        self._store.claim_queue(queue)
        recipient_id = queue.recipient_id
        self.withdraw_event(peer, recipient_id)
        subscription = Subscription(peer)
        peer.subscriptions[recipient_id] = subscription
        former = self._current.get(recipient_id)
        self._current[recipient_id] = subscription
        if former is not None and former.peer is not peer:
            former.peer.subscriptions.pop(recipient_id, None)
            former.peer.waiting.discard(recipient_id)
            self.add_event(former.peer, recipient_id, _END.encode(former.peer.version))
        return subscription

    def subscriber(self, queue: Queue) -> Peer | None:
        """The connection that is subscribed to `queue`."""
        subscription = self._current.get(queue.recipient_id)
        return None if subscription is None else subscription.peer

    def mark_delivered(self, subscription: Subscription, queue: Queue) -> bytes | None:
        """The MSG with the first message, which now counts as delivered; None without one."""
        message = self._store.head(queue)
        if message is None:
            subscription.delivered = None
            return None
        subscription.delivered = message.msg_id
        return b"".join(sealed_message(queue, message))

    # -- delivering

    def deliver(self, queue: Queue, message: Message) -> None:
        """Sends the first message to the subscriber, if there is one that can take it (§5.3)."""
        subscription = self._current.get(queue.recipient_id)
        if subscription is None:
            return
        if self._delay is None:
            self._deliver_now(subscription, queue, message)
        elif not subscription.delayed and subscription.delivered is None:
            subscription.delayed = True
            self._delay(partial(self._end_delay, queue.recipient_id, subscription))

    def _deliver_now(self, subscription: Subscription, queue: Queue, message: Message) -> None:
        if self._is_taken(queue) or subscription.delivered is not None:
            return
        peer = subscription.peer
        if peer.outlet.full:
            subscription.waits = True
            peer.waiting.add(queue.recipient_id)
            return
        subscription.delivered = message.msg_id
        head, sealed = sealed_message(queue, message)
        peer.outlet.send_parts((peer.framing.event(queue.recipient_id, head), sealed))

    def _end_delay(self, recipient_id: bytes, subscription: Subscription) -> None:
        """Delivers what was delayed, as to one that was full and is no more."""
        subscription.delayed = False
        if self._current.get(recipient_id) is not subscription:
            return
        peer = subscription.peer
        peer.waiting.add(recipient_id)
        self.ready(peer)

    def ready(self, peer: Peer) -> None:
        """Sends what waited while `peer` was full.

        What the store does not give now is tried again in the next round of events.
        """
        if not peer.waiting or peer.outlet.full:
            return
        if not self._store.shared:
            self._catch_up(peer, None)
            return
        waiting = list(peer.waiting)
        for start in range(0, len(waiting), _MANY):
            some = waiting[start : start + _MANY]
            wanted = [Wanted(What.RECIPIENT, recipient_id, 1) for recipient_id in some]
            self._store.admit(wanted, partial(self._catch_up, peer, some), some)

    def _catch_up(self, peer: Peer, some: list[bytes] | None) -> None:
        """Sends the messages that wait in these queues, None for all, while there is room."""
        failed = []
        left = peer.waiting if some is None else set(some) & peer.waiting
        while left and not peer.outlet.full:
            recipient_id = left.pop()
            peer.waiting.discard(recipient_id)
            subscription = self._current.get(recipient_id)
            if subscription is None or subscription.peer is not peer:
                continue
            try:
                queue = self._store.by_recipient(recipient_id)
                message = None if queue is None else self._store.head(queue)
            except StoreError:
                failed.append(recipient_id)
                continue
            subscription.waits = False
            if queue is not None and message is not None:
                self._deliver_now(subscription, queue, message)
        if failed:
            peer.waiting.update(failed)
            self._failed.add(peer)

    def acknowledge(self, peer: Peer, queue: Queue, msg_id: bytes) -> tuple[bytes, Message | None]:
        """The answer to ACK and the message that it deleted (§4).

        An empty id matches any delivered message but deletes none.
        """
        subscription = peer.subscriptions.get(queue.recipient_id)
        if subscription is None or subscription.delivered is None:
            return _NO_MESSAGE, None
        if not subscription.getter and self._is_taken(queue):
            return _NO_MESSAGE, None
        if msg_id and subscription.delivered != msg_id:
            return _NO_MESSAGE, None
        removed = self._store.remove(queue, msg_id)
        subscription.acknowledged = True
        if subscription.getter:
            subscription.delivered = None
            return b"OK", removed
        return self.mark_delivered(subscription, queue) or b"OK", removed

    # -- ending

    def add_event(self, peer: Peer, entity_id: bytes, message: bytes) -> None:
        """Keeps an event for `peer` until the next round of `send_events` (§5.2)."""
        events = self._events.setdefault(peer, {})
        events[entity_id] = peer.framing.event(entity_id, message)

    def withdraw_event(self, peer: Peer, entity_id: bytes) -> None:
        """Forgets an event that is true no more: `peer` has subscribed again."""
        events = self._events.get(peer)
        if events is not None:
            events.pop(entity_id, None)

    def send_events(self) -> None:
        """Sends the events that were kept, newest first; the full ones keep theirs."""
        for peer in list(self._failed):
            self._failed.discard(peer)
            self.ready(peer)
        for peer in list(self._events):
            if peer.outlet.full:
                continue
            events = list(reversed(self._events.pop(peer).values()))
            if not events:
                continue
            self._counters.subscriptions_ended += len(events)
            self._counters.subscriptions_ended_batches += len(events) // MAX_TRANSMISSIONS + 1
            peer.outlet.send(events)

    def send_now(self, queue: Queue, message: bytes) -> None:
        """Sends an event about `queue` to its subscriber at once (§5.5)."""
        peer = self.subscriber(queue)
        if peer is not None:
            peer.outlet.send((peer.framing.event(queue.recipient_id, message),))

    def delete(self, queue: Queue, by: Peer | None) -> None:
        """Ends all interest in a deleted queue; a subscriber other than `by` will be told."""
        recipient_id = queue.recipient_id
        if by is not None:
            by.subscriptions.pop(recipient_id, None)
            by.waiting.discard(recipient_id)
        subscription = self._current.get(recipient_id)
        if subscription is not None:
            if subscription.peer is by:
                del self._current[recipient_id]
            else:
                self._end(recipient_id, _DELETED)

    def _end(self, recipient_id: bytes, why: End | Deld) -> None:
        """Ends the subscription to a queue, and will tell why."""
        peer = self._current.pop(recipient_id).peer
        peer.subscriptions.pop(recipient_id, None)
        peer.waiting.discard(recipient_id)
        self.add_event(peer, recipient_id, why.encode(peer.version))

    # -- what other relays on the same store do

    def _is_taken(self, queue: Queue) -> bool:
        """Whether another relay has the queue's subscriber; then the one here is one no more."""
        if not self._store.shared or self._store.is_ours(queue):
            return False
        self._end(queue.recipient_id, _END)
        return True

    def look(self, recipient_id: bytes) -> None:
        """Looks what has become of a queue, and lets its subscriber know."""
        if recipient_id not in self._current:
            return
        queue = self._store.by_recipient(recipient_id)
        if queue is None:
            self._end(recipient_id, _DELETED)
        elif not self._is_taken(queue):
            message = self._store.head(queue)
            if message is not None:
                self.deliver(queue, message)

    def start_over(self, recipient_id: bytes) -> None:
        """Delivers the first message of a queue once more, whatever was delivered before.

        Not to who has subscribed since then: that has lost no answer.
        """
        subscription = self._current.get(recipient_id)
        if subscription is not None and subscription.acknowledged:
            # Asked for first: it may fail, and then it is asked for again.
            queue = self._store.by_recipient(recipient_id)
            if queue is not None:
                self._store.head(queue)
            subscription.delivered = None
            self.look(recipient_id)

    def followed(self) -> Iterable[bytes]:
        """The recipient ids of the queues that have subscribers here."""
        return self._current.keys()

    def leave(self, peer: Peer) -> None:
        """Forgets a connection that has ended; nobody is told."""
        self._events.pop(peer, None)
        self._failed.discard(peer)
        for recipient_id, subscription in peer.subscriptions.items():
            if self._current.get(recipient_id) is subscription:
                del self._current[recipient_id]
        peer.subscriptions.clear()
        peer.waiting.clear()


_NO_MESSAGE = b"ERR " + errors.NO_MSG.encode()


def ended_service(count: int) -> bytes:
    """ENDS for a service whose other connection took over `count` queues."""
    return Ends(count).encode(0)
