"""Notifiers, their subscriptions and the notifications themselves (docs/spec/smp-server.md §7).

A notification says that a queue has a message, and is encrypted so that only the
recipient learns which one. It goes to the connection subscribed to the notifier,
or to the connection of the service that the notifier is associated with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from smpd.counters import Counters
from smpd.peers import Peer
from smpd.queues import Message, Notifier, Queue
from smpd.stores.interface import Notification, Store, StoreError, Wanted, What
from smpd.subscriptions import Subscriptions, ended_service
from txsimplex.boxes import BoxKey
from txsimplex.keys import Random
from txsimplex.smp.bodies import seal_meta
from txsimplex.smp.messages import Deld, End, Nmsg, Sok, Soks

_END = End()
_DELETED = Deld()
_NONCE_SIZE = 24
_PER_BATCH = 80


class Notifications:
    """Who listens to which notifier, and what waits for them."""

    def __init__(
        self, store: Store, subscriptions: Subscriptions, counters: Counters, random: Random
    ) -> None:
        self._store = store
        self._subscriptions = subscriptions
        self._counters = counters
        self._random = random
        self._subscribers: dict[bytes, Peer] = {}
        self._services: dict[bytes, Peer] = {}

    # -- subscribing

    def subscribe(self, peer: Peer, notifier: Notifier, queue: Queue) -> bytes:
        """The answer to NSUB by a connection that is no service (§7.2)."""
        service_id = notifier.service_id
        if service_id is not None:
            self._store.associate(queue, None)
            self._end_for_service(service_id, notifier.notifier_id, _END)
        self._store.claim_notifier(queue)
        if notifier.notifier_id in peer.notifier_ids:
            self._counters.notifier_subscriptions_duplicate += 1
        else:
            self._counters.notifier_subscriptions += 1
            self._end_subscriber(notifier.notifier_id)
            self._subscribers[notifier.notifier_id] = peer
            peer.notifier_ids.add(notifier.notifier_id)
            self._subscriptions.withdraw_event(peer, notifier.notifier_id)
        return Sok().encode(peer.version)

    def _end_for_service(self, service_id: bytes, notifier_id: bytes, why: End | Deld) -> None:
        """Tells the connection of a service that it has lost one of its notifiers."""
        peer = self._services.get(service_id)
        if peer is None:
            return
        # It may lose more than it has subscribed to: an earlier connection of the
        # service may have done that.
        if peer.service_notifiers > 0:
            peer.service_notifiers -= 1
        self._subscriptions.add_event(peer, notifier_id, why.encode(peer.version))

    def _end_subscriber(self, notifier_id: bytes, why: End | Deld = _END) -> None:
        former = self._subscribers.pop(notifier_id, None)
        if former is not None:
            former.notifier_ids.discard(notifier_id)
            self._subscriptions.add_event(former, notifier_id, why.encode(former.version))

    def subscribe_by_service(
        self, peer: Peer, service_id: bytes, notifier: Notifier, queue: Queue
    ) -> bytes:
        """The answer to NSUB by a connection of a service (§7.2)."""
        notifier_id, former_id = notifier.notifier_id, notifier.service_id
        known = former_id == service_id
        if known:
            self._counters.notifier_subscriptions_duplicate += 1
        else:
            self._store.associate(queue, service_id)
            if former_id is not None:
                self._end_for_service(former_id, notifier_id, _END)
            self._counters.notifier_subscriptions += 1
        self._end_subscriber(notifier_id)
        self._subscriptions.withdraw_event(peer, notifier_id)
        took_over = self._take_over(peer, service_id)
        if not known or took_over:
            peer.service_notifiers += 1
        return Sok(service_id).encode(peer.version)

    def _take_over(self, peer: Peer, service_id: bytes) -> bool:
        """Makes `peer` the connection of its service; whether another one was before."""
        former = self._services.get(service_id)
        self._store.claim_service(service_id, newly=former is not peer)
        self._services[service_id] = peer
        self._subscriptions.withdraw_event(peer, service_id)
        if former is None or former is peer:
            return former is None
        self._end_service(former, service_id)
        return True

    def _end_service(self, former: Peer, service_id: bytes) -> None:
        """Tells a connection of a service that another one has taken its place."""
        self._subscriptions.add_event(former, service_id, ended_service(former.service_notifiers))
        former.service_notifiers = 0
        former.service_subscribed = False

    def subscribe_all(self, peer: Peer, service_id: bytes) -> bytes:
        """The answer to NSUBS (§7.2)."""
        if not peer.service_subscribed:
            count = self._store.notifier_count(service_id)
            self._take_over(peer, service_id)
            peer.service_subscribed = True
            peer.service_notifiers = count
        else:
            # Other relays may not know yet: an earlier NSUBS may have failed at that.
            self._store.claim_service(service_id, newly=False)
        return Soks(peer.service_notifiers).encode(peer.version)

    # -- ending

    def deleted(self, notifier: Notifier | None) -> None:
        """Tells the subscriber of a notifier that it was deleted (§7.2)."""
        if notifier is None:
            return
        if notifier.notifier_id in self._subscribers:
            self._end_subscriber(notifier.notifier_id, _DELETED)
        elif notifier.service_id is not None:
            self._end_for_service(notifier.service_id, notifier.notifier_id, _DELETED)

    def leave(self, peer: Peer) -> None:
        """Forgets a connection that has ended."""
        for notifier_id in peer.notifier_ids:
            if self._subscribers.get(notifier_id) is peer:
                del self._subscribers[notifier_id]
        peer.notifier_ids.clear()
        service = peer.service
        if service is not None and self._services.get(service.service_id) is peer:
            del self._services[service.service_id]

    # -- what other relays on the same store do

    def look(self, notifier_id: bytes) -> None:
        """Looks what has become of a notifier, and lets its subscriber know."""
        if notifier_id not in self._subscribers:
            return
        queue = self._store.by_notifier(notifier_id)
        if queue is None or queue.notifier is None:
            self._end_subscriber(notifier_id, _DELETED)
        elif queue.notifier.service_id is not None or not self._store.is_our_notifier(queue):
            self._end_subscriber(notifier_id)

    def service_taken(self, service_id: bytes) -> None:
        """A service has a connection at another relay now."""
        former = self._services.pop(service_id, None)
        if former is not None:
            self._end_service(former, service_id)

    def service_lost(self, service_id: bytes, notifier_id: bytes, *, deleted: bool) -> None:
        """A service has lost one of its notifiers at another relay."""
        self._end_for_service(service_id, notifier_id, _DELETED if deleted else _END)

    def followed(self) -> tuple[Iterable[bytes], Iterable[bytes]]:
        """The ids of notifiers that have subscribers here, and of services with connections."""
        return self._subscribers.keys(), self._services.keys()

    # -- notifying

    def add(self, notifier: Notifier, message: Message) -> None:
        """Keeps a notification about `message` for the next round (§7.1)."""
        nonce = self._random(_NONCE_SIZE)
        meta = seal_meta(BoxKey(notifier.secret), nonce, message.msg_id, message.timestamp)
        notification = Notification(message.timestamp, nonce, meta)
        self._store.add_notification(notifier.notifier_id, notification)

    def send(self) -> None:
        """One round: sends what waits to the connections that can take it (§7.1).

        What the store does not give now stays for the next round.
        """
        waiting = [
            notifier_id
            for notifier_id in self._store.notifiers_waiting()
            if notifier_id in self._subscribers or self._services
        ]
        if not self._store.shared:
            self._send_some(waiting)
            return
        for start in range(0, len(waiting), _PER_BATCH):
            some = waiting[start : start + _PER_BATCH]
            wanted = [Wanted(What.NOTIFIER, notifier_id) for notifier_id in some]
            self._store.admit(wanted, partial(self._send_some, some), some)

    def _send_some(self, notifier_ids: Sequence[bytes]) -> None:
        rounds: dict[Peer, list[bytes]] = {}
        for notifier_id in notifier_ids:
            try:
                self._collect(notifier_id, rounds)
            except StoreError:
                continue
        for peer, events in rounds.items():
            self._counters.notifications_sent += len(events)
            self._counters.notifications_sent_batches += len(events) // _PER_BATCH + 1
            peer.outlet.send(events)

    def _collect(self, notifier_id: bytes, rounds: dict[Peer, list[bytes]]) -> None:
        """Adds what waits for one notifier to what its connection gets in this round."""
        queue = self._store.by_notifier(notifier_id)
        if queue is None or queue.notifier is None:
            self._store.take_notifications(notifier_id)
            return
        service_id = queue.notifier.service_id
        if service_id is None:
            peer = self._subscribers.get(notifier_id)
        else:
            peer = self._services.get(service_id)
        if peer is None:
            self._store.nobody_waits(notifier_id)
            return
        if peer.outlet.full:
            return
        taken = self._store.take_notifications(notifier_id)
        events = rounds.setdefault(peer, [])
        for one in taken:
            message = Nmsg(one.nonce, one.meta).encode(peer.version)
            events.append(peer.framing.event(notifier_id, message))
