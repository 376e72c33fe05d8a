"""The relay: blocks of commands in, answers and events out (docs/spec/smp-server.md §2).

No transport, and time and randomness come from outside. A block's commands are all
verified first, against the queues as they are then, and executed after that, from
the first to the last. (The reference executes them from the last to the first,
which no client relies on.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from smpd.authorization import Authority, CommandError, check_service
from smpd.counters import Counters
from smpd.execution import Execution
from smpd.forwarding import Opened, SessionFull, opened
from smpd.lookups import lookups
from smpd.notifications import Notifications
from smpd.peers import Peer
from smpd.queues import Queue, Status, day_of, new_id
from smpd.rules import Rules
from smpd.stores.interface import Elsewhere, Service, Store, StoreError, Wanted, What
from smpd.subscriptions import Delay, Subscriptions
from txsimplex.keys import Random
from txsimplex.smp import commands as c, errors
from txsimplex.smp.errors import BlockingInformation, Error
from txsimplex.smp.transmissions import LARGEST_TRANSMISSION, Refused, Transmission

Item = Transmission | Refused | Opened
"""A command of a block; `Opened` if it came by way of a proxy."""

_READING: Final = frozenset((c.Sub, c.Get, c.Que, c.Lget, c.Ping))


@dataclass(slots=True)
class Outcome:
    """The answers to the commands of a block.

    `refused` are those that failed before anything was executed: they go out
    first and apart (§2.1). `messages` follow from SUB (§2.2). `needs` has for each
    answer the number of the store's last change that it depends on, 0 for none: the answer
    may be given when the store's mark has passed that. `due` is when all of it may be given at
    the earliest, in seconds of the reactor, 0 for any time.
    """

    refused: Sequence[bytes] = field(repr=False)
    answers: Sequence[bytes] = field(repr=False)
    messages: Sequence[bytes] = field(repr=False)
    needs: Sequence[int] = ()
    due: float = 0.0


class Relay(Elsewhere):
    """The relay: its queues, subscriptions and notifications.

    `clock` gives the time in seconds since 1970, `random` as many random bytes
    as it is asked for. `delay` calls later what it is given: messages are delivered then.
    """

    def __init__(
        self,
        store: Store,
        rules: Rules,
        clock: Callable[[], float],
        random: Random,
        delay: Delay | None = None,
    ) -> None:
        self.store = store
        self.rules = rules
        self.counters = Counters()
        self.subscriptions = Subscriptions(store, self.counters, delay)
        self.notifications = Notifications(store, self.subscriptions, self.counters, random)
        self._authority = Authority(store, self.counters)
        self._execution = Execution(
            store, rules, self.subscriptions, self.notifications, self.counters, clock, random
        )
        self._clock = clock
        self._random = random
        store.elsewhere = self

    # -- connections

    def open_forwarded(self, peer: Peer, items: Sequence[Transmission | Refused]) -> Sequence[Item]:
        """The commands of a block with those opened that came by way of a proxy.

        Without those that come when no more keys can be remembered: they are neither executed
        nor answered, and the proxy finds their connection closed (smp-proxy.md §3.4).
        """
        for item in items:
            if type(item) is Transmission and type(item.command) is c.Rfwd:
                return [one for each in items if (one := self._open(peer, each)) is not None]
        return items

    def _open(self, peer: Peer, item: Transmission | Refused) -> Item | None:
        if type(item) is not Transmission or type(item.command) is not c.Rfwd:
            return item
        try:
            error = check_service(peer, item)
            if error is not None:
                raise CommandError(error)
            return opened(peer, item, item.command, self.rules.forwarded_keys)
        except CommandError as refused:
            return Refused(item.header, refused.error)
        except SessionFull:
            return None

    def lookups(self, peer: Peer, items: Sequence[Item]) -> list[Wanted] | None:
        """What `process` will look at in the store; None if it has nothing to do with it."""
        before = None
        if self.rules.expire_on_send:
            before = self.rules.messages_kept_since(self._clock())
        return lookups(peer, items, before)

    def process(self, peer: Peer, items: Sequence[Item]) -> Outcome:
        """Verifies and executes the commands of one block, in order.

        What came by way of a proxy was opened before, by `open_forwarded`.
        """
        if len(items) == 1:
            return self._process_one(peer, items[0])
        self._count_batch([one.command for one in items if isinstance(one, Transmission)])
        refused: list[bytes] = []
        permitted: list[tuple[Transmission | Opened, Queue | None]] = []
        for item in items:
            try:
                permitted.append(self._permit(peer, item))
            except CommandError as error:
                refused.append(_refusal(peer, item.header, error.error))
        answers: list[bytes] = []
        messages: list[bytes] = []
        needs: list[int] = []
        for transmission, queue in permitted:
            answer, message, need = self._execute(peer, transmission, queue)
            answers.append(answer)
            messages += message
            needs.append(need)
        return Outcome(refused, answers, messages, needs)

    def _process_one(self, peer: Peer, item: Item) -> Outcome:
        """`process` of a block with one command, as most are."""
        try:
            transmission, queue = self._permit(peer, item)
        except CommandError as error:
            return Outcome((_refusal(peer, item.header, error.error),), (), ())
        answer, message, need = self._execute(peer, transmission, queue)
        return Outcome((), (answer,), message, (need,))

    def _permit(self, peer: Peer, item: Item) -> tuple[Transmission | Opened, Queue | None]:
        """A command that may be executed, and its queue. Raises `CommandError`."""
        if type(item) is Opened:
            return self._permit_forwarded(item)
        if type(item) is not Transmission:
            raise CommandError(item.error)  # type: ignore[union-attr]
        try:
            return item, self._authority.authorize(peer, item)
        except StoreError as problem:
            raise CommandError(errors.store_error(str(problem))) from None

    def _permit_forwarded(self, forwarded: Opened) -> tuple[Opened, Queue | None]:
        """The same for one that was forwarded: what is wrong with it, only its sender is told."""
        try:
            forwarded.item, queue = self._permit(forwarded.peer, forwarded.item)  # type: ignore[assignment]
        except CommandError as error:
            forwarded.item = Refused(forwarded.item.header, error.error)
            return forwarded, None
        return forwarded, queue

    def _execute_forwarded(
        self, peer: Peer, forwarded: Opened, queue: Queue | None
    ) -> tuple[bytes, tuple[bytes, ...], int]:
        item, sender, need = forwarded.item, forwarded.peer, 0
        if type(item) is Transmission:
            answer, _, need = self._execute(sender, item, queue)
        else:
            answer = _refusal(sender, item.header, item.error)  # type: ignore[union-attr]
        sealed = forwarded.answer(answer, peer.version)
        encoded = None if sealed is None else peer.framing.answer(forwarded.header, sealed)
        if encoded is None or len(encoded) > LARGEST_TRANSMISSION:
            # Two ids that the proxy and the sender have made are in it, and can be long.
            return _refusal(peer, forwarded.header, errors.BLOCK), (), need
        self.counters.forwarded_received += 1
        return encoded, (), need

    def _execute(
        self, peer: Peer, transmission: Transmission | Opened, queue: Queue | None
    ) -> tuple[bytes, tuple[bytes, ...], int]:
        """The answer to a command, the message that follows it or nothing, and what it needs."""
        if type(transmission) is Opened:
            return self._execute_forwarded(peer, transmission, queue)
        assert type(transmission) is Transmission
        messages: tuple[bytes, ...] = ()
        before = self.store.noted
        answer = self._execution.execute(peer, transmission, queue)
        if type(answer) is tuple:
            answer, message = answer
            messages = (peer.framing.event(transmission.entity_id, message),)
        encoded = peer.framing.answer(transmission.header, answer)  # type: ignore[arg-type]
        if len(encoded) > LARGEST_TRANSMISSION:
            # The ids are the client's and can be long; the reference answers nothing then.
            encoded = _refusal(peer, transmission.header, errors.LARGE_MSG)
        noted = self.store.noted
        if type(transmission.command) in _READING:
            # Messages are delivered before they are safe. But where other relays would have
            # to know of a subscription, they must.
            return encoded, messages, noted if self.store.shared and noted != before else 0
        if noted != before:
            return encoded, messages, noted
        if queue is None or answer[:4] == b"ERR ":
            return encoded, messages, 0
        # It changed nothing: it may have found its work done, but not yet safe.
        return encoded, messages, self.store.unsafe(queue)

    def ready(self, peer: Peer) -> None:
        """Goes on with a connection that was full and takes more now."""
        self.subscriptions.ready(peer)

    def leave(self, peer: Peer) -> None:
        """Forgets a connection that has ended."""
        self.subscriptions.leave(peer)
        self.notifications.leave(peer)

    def service(self, role: c.Role, chain: Sequence[bytes], fingerprint: bytes) -> Service:
        """The service with this certificate, known or new (§8).

        Raises `RoleMismatch` or `StoreError`.
        """
        day = day_of(self._clock())
        service = Service(new_id(self._random), role, tuple(chain), fingerprint, day)
        return self.store.add_service(service)

    def _count_batch(self, batch: list[c.Command]) -> None:
        if len(batch) < 2:
            return
        first = type(batch[0])
        if all(isinstance(command, c.Nsub) for command in batch):
            self.counters.notifier_subscription_batches += 1
        elif all(command.of_recipient for command in batch):
            if first is c.Sub:
                self.counters.subscription_batches += 1
            elif first is c.Del:
                self.counters.queues_deleted_batches += 1
            elif first is c.Ndel:
                self.counters.notifiers_deleted_batches += 1

    # -- rounds

    def send_events(self) -> None:
        """Sends END, ENDS and DELD that have come up since the last round (§5.2)."""
        self.subscriptions.send_events()

    def send_notifications(self) -> None:
        """Sends the notifications that wait (§7.1)."""
        self.notifications.send()

    def expire_messages(self, step: int) -> Iterator[Any]:
        """Removes messages older than they may be, `step` queues at a time (§6.1).

        Yields None, or what is to be waited for.
        """
        before = self.rules.messages_kept_since(self._clock())
        for expired in self.store.expire_all(before, step):
            if isinstance(expired, int):
                self._count_expired(expired)
                yield None
            else:
                yield expired.addCallback(self._count_expired)

    def _count_expired(self, expired: int) -> None:
        self.counters.messages_expired += expired

    def expire_queues(self, step: int) -> Iterator[Any]:
        """Removes queues that nobody has used for long, `step` at a time.

        The reference keeps queues for ever, and so does this relay if not told otherwise.
        One that has a subscriber is in use, however long ago its last command was. Yields None, or
        what is to be waited for.
        """
        ttl = self.rules.unused_ttl
        if ttl is None:
            return
        before = day_of(self._clock() - ttl)

        def expire(recipient_ids: Sequence[bytes]) -> None:
            wanted = [Wanted(What.RECIPIENT, each) for each in recipient_ids]
            self.store.admit(wanted, lambda: self._expire_unused(recipient_ids, before), wanted)

        for found in self.store.unused(before, step):
            if isinstance(found, Sequence):
                expire(found)
                yield None
            else:
                yield found.addCallback(expire)

    def _expire_unused(self, recipient_ids: Sequence[bytes], before: int) -> None:
        for recipient_id in recipient_ids:
            with suppress(StoreError):
                queue = self.store.by_recipient(recipient_id)
                if queue is None or queue.used_on >= before:
                    continue
                if self.subscriptions.subscriber(queue) is None:
                    self._expire(queue)

    def _expire(self, queue: Queue) -> None:
        notifier = queue.notifier
        self.store.delete(queue)
        self.subscriptions.delete(queue, None)
        self.notifications.deleted(notifier)
        self.counters.queues_expired += 1

    def expire_notifications(self) -> None:
        """Removes notifications older than they may be (§7.1)."""
        before = self.rules.notifications_kept_since(self._clock())
        expired = self.store.expire_notifications(before)
        if isinstance(expired, int):
            self._count_expired_notifications(expired)
        else:
            expired.addCallback(self._count_expired_notifications)

    def _count_expired_notifications(self, expired: int) -> None:
        self.counters.notifications_expired += expired

    # -- what other relays on the same store do

    def queue_changed(self, recipient_id: bytes) -> None:
        """See `Elsewhere`."""
        self.subscriptions.look(recipient_id)

    def queue_blocked(self, recipient_id: bytes) -> None:
        """See `Elsewhere`."""
        queue = self.store.by_recipient(recipient_id)
        if queue is not None and queue.blocked is not None:
            self._tell_blocked(queue, queue.blocked)

    def answers_lost(self, recipient_id: bytes) -> None:
        """See `Elsewhere`."""
        self.subscriptions.start_over(recipient_id)

    def notifier_changed(self, notifier_id: bytes) -> None:
        """See `Elsewhere`."""
        self.notifications.look(notifier_id)

    def service_taken(self, service_id: bytes) -> None:
        """See `Elsewhere`."""
        self.notifications.service_taken(service_id)

    def service_lost(self, service_id: bytes, notifier_id: bytes, *, deleted: bool) -> None:
        """See `Elsewhere`."""
        self.notifications.service_lost(service_id, notifier_id, deleted=deleted)

    def followed(self) -> tuple[Iterable[bytes], Iterable[bytes], Iterable[bytes]]:
        """See `Elsewhere`."""
        return (self.subscriptions.followed(), *self.notifications.followed())

    # -- the operator

    def block_queue(self, sender_id: bytes, information: BlockingInformation) -> bool:
        """Blocks the queue that senders know by this id, and tells its subscriber (§5.5).

        False when there is none.
        """
        queue = self.store.by_sender(sender_id)
        if queue is None:
            return False
        was_active = queue.status is Status.ACTIVE
        self.store.set_status(queue, Status.BLOCKED, information)
        if was_active:
            self.counters.queues_blocked += 1
        self._tell_blocked(queue, information)
        return True

    def _tell_blocked(self, queue: Queue, information: BlockingInformation) -> None:
        subscriber = self.subscriptions.subscriber(queue)
        if subscriber is not None:
            error = errors.blocked(information)
            message = b"ERR " + error.encode(subscriber.version)
            self.subscriptions.send_now(queue, message)

    def unblock_queue(self, sender_id: bytes) -> bool:
        """Activates a blocked queue; False when there is none."""
        queue = self.store.by_sender(sender_id)
        if queue is None or queue.status is not Status.BLOCKED:
            return False
        self.store.set_status(queue, Status.ACTIVE)
        return True


def _refusal(peer: Peer, header: bytes, error: Error) -> bytes:
    return peer.framing.answer(header, b"ERR " + error.encode(peer.version))
