"""What each command does once it is permitted (docs/spec/smp-server.md §4, §5)."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from smpd.authorization import CommandError
from smpd.counters import Counters
from smpd.notifications import Notifications
from smpd.peers import Peer, Subscription
from smpd.queue_information import queue_information
from smpd.queues import DAY, ID_SIZE, Link, Message, Notifier, Queue, Status, day_of, new_id
from smpd.rules import Rules
from smpd.stores.interface import Collision, Store, StoreError
from smpd.subscriptions import Subscriptions
from txsimplex.keys import Algorithm, PrivateKey, PublicKey, Random
from txsimplex.smp import commands as c, errors
from txsimplex.smp.commands import QueueMode
from txsimplex.smp.messages import Ids, Info, Lnk, Nid, NotifierIds, Sok
from txsimplex.smp.transmissions import Transmission
from txsimplex.smp.versions import max_message_length

Answer = bytes | tuple[bytes, bytes]
"""The message that answers a command, and the MSG that follows it if SUB has one."""

_OK: Final = b"OK"
_ATTEMPTS: Final = 3
"""How often new ids are made when they turn out to be taken."""


class Execution:
    """Executes commands, each already permitted on its queue."""

    def __init__(
        self,
        store: Store,
        rules: Rules,
        subscriptions: Subscriptions,
        notifications: Notifications,
        counters: Counters,
        clock: Callable[[], float],
        random: Random,
    ) -> None:
        self._store = store
        self._rules = rules
        self._subscriptions = subscriptions
        self._notifications = notifications
        self._counters = counters
        self._clock = clock
        self._random = random

    def execute(self, peer: Peer, t: Transmission, queue: Queue | None) -> Answer:
        """The answer to one command; errors of the store and of the rules included."""
        try:
            if queue is not None and queue.status is Status.DELETED:
                raise CommandError(errors.AUTH)
            answer: Answer = _EXECUTE[type(t.command)](self, peer, t, t.command, queue)
            return answer
        except CommandError as refused:
            error = refused.error
        except StoreError as problem:
            error = errors.store_error(str(problem))
        return b"ERR " + error.encode(peer.version)

    def _use(self, queue: Queue) -> None:
        """What precedes most commands on a queue (§3.1)."""
        if queue.status is Status.BLOCKED and queue.blocked is not None:
            raise CommandError(errors.blocked(queue.blocked))
        self._note_use(queue)

    def _note_use(self, queue: Queue) -> None:
        now = self._clock()
        if not 0 <= now - queue.used_on < DAY:
            self._store.use(queue, day_of(now))

    def _key_pair(self) -> PrivateKey:
        return PrivateKey.generate(Algorithm.X25519, self._random)

    # -- the recipient's commands

    def _new(self, peer: Peer, t: Transmission, command: c.New, queue: None) -> Answer:
        rules = self._rules
        if not rules.new_queues or not _right_password(rules.password, command.password):
            raise CommandError(errors.AUTH)
        if peer.service is not None and not command.subscribe:
            raise CommandError(errors.PROHIBITED)
        link = None if command.request is None else command.request.link
        if link is not None and link.sender_id != hashlib.sha3_384(t.corr_id).digest()[:ID_SIZE]:
            raise CommandError(errors.PROHIBITED)
        key = self._key_pair()
        notifier_key = None if command.notifier is None else self._key_pair()
        new = self._add_queue(peer, command, key, notifier_key)
        self._counters.queues_created += 1
        if new.notifier is not None:
            self._counters.notifiers_created_new += 1
        if command.subscribe and peer.service is None:
            self._subscriptions.subscribe(peer, new)
        notifier_ids = None
        if new.notifier is not None and notifier_key is not None:
            notifier_ids = NotifierIds(new.notifier.notifier_id, notifier_key.public)
        link_id = None if new.link is None else new.link.link_id
        return Ids(
            new.recipient_id,
            new.sender_id,
            key.public,
            new.mode,
            link_id,
            new.service_id,
            notifier_ids,
        ).encode(peer.version)

    def _add_queue(
        self, peer: Peer, command: c.New, key: PrivateKey, notifier_key: PrivateKey | None
    ) -> Queue:
        """Stores a new queue under ids that are not taken yet."""
        for _ in range(_ATTEMPTS):
            queue = self._make_queue(peer, command, key, notifier_key)
            try:
                self._store.add(queue)
            except Collision:
                if command.request is not None and command.request.link is not None:
                    raise CommandError(errors.AUTH) from None
            else:
                return queue
        raise CommandError(errors.INTERNAL)

    def _make_queue(
        self, peer: Peer, command: c.New, key: PrivateKey, notifier_key: PrivateKey | None
    ) -> Queue:
        request = command.request
        wanted = None if request is None else request.link
        link = None
        if wanted is not None:
            given = wanted.link_id
            link = Link(new_id(self._random) if given is None else given, wanted.data)
        notifier = None
        if command.notifier is not None and notifier_key is not None:
            notifier = self._make_notifier(
                command.notifier.key, notifier_key, command.notifier.dh_key
            )
        return Queue(
            recipient_id=new_id(self._random),
            recipient_keys=[command.recipient_key],
            secret=key.exchange(command.dh_key),
            sender_id=new_id(self._random) if wanted is None else wanted.sender_id,
            mode=None if request is None else request.mode,
            link=link,
            notifier=notifier,
            used_on=day_of(self._clock()),
            service_id=None if peer.service is None else peer.service.service_id,
        )

    def _make_notifier(self, key: PublicKey, private: PrivateKey, dh_key: PublicKey) -> Notifier:
        return Notifier(new_id(self._random), key, private.exchange(dh_key))

    def _sub(self, peer: Peer, t: Transmission, command: c.Sub, queue: Queue) -> Answer:
        self._use(queue)
        subscription = peer.subscriptions.get(queue.recipient_id)
        again = subscription is not None
        if subscription is None:
            subscription = self._subscriptions.subscribe(peer, queue)
        elif subscription.getter:
            self._counters.subscriptions_prohibited += 1
            raise CommandError(errors.PROHIBITED)
        else:
            # Other relays may not know yet: an earlier SUB may have failed at that.
            self._store.claim_queue(queue)
        message = self._subscriptions.mark_delivered(subscription, queue)
        if again:
            self._counters.subscriptions_duplicate += 1
        elif message is not None:
            self._counters.subscriptions += 1
        answer = Sok(None if peer.service is None else peer.service.service_id)
        if message is None:
            return answer.encode(peer.version)
        return answer.encode(peer.version), message

    def _key(self, peer: Peer, t: Transmission, command: c.Key, queue: Queue) -> Answer:
        self._use(queue)
        self._secure(queue, command.key)
        return _OK

    def _secure(self, queue: Queue, key: PublicKey) -> None:
        if queue.sender_key is not None and queue.sender_key != key:
            raise CommandError(errors.AUTH)
        if queue.sender_key is None:
            self._store.secure(queue, key)
        self._counters.queues_secured += 1

    def _rkey(self, peer: Peer, t: Transmission, command: c.Rkey, queue: Queue) -> Answer:
        self._use(queue)
        if queue.mode is not QueueMode.CONTACT:
            raise CommandError(errors.AUTH)
        self._store.set_recipient_keys(queue, command.keys)
        return _OK

    def _lset(self, peer: Peer, t: Transmission, command: c.Lset, queue: Queue) -> Answer:
        self._use(queue)
        link = queue.link
        if queue.is_secured_messaging or (
            link is not None
            and (link.link_id != command.link_id or link.data.fixed != command.data.fixed)
        ):
            raise CommandError(errors.AUTH)
        try:
            self._store.set_link(queue, command.link_id, command.data)
        except Collision:
            raise CommandError(errors.AUTH) from None
        return _OK

    def _ldel(self, peer: Peer, t: Transmission, command: c.Ldel, queue: Queue) -> Answer:
        self._use(queue)
        self._store.delete_link(queue)
        return _OK

    def _nkey(self, peer: Peer, t: Transmission, command: c.Nkey, queue: Queue) -> Answer:
        self._use(queue)
        private = self._key_pair()
        former = queue.notifier
        for _ in range(_ATTEMPTS):
            notifier = self._make_notifier(command.key, private, command.dh_key)
            try:
                self._store.set_notifier(queue, notifier)
            except Collision:
                continue
            self._notifications.deleted(former)
            self._counters.notifiers_created += 1
            return Nid(notifier.notifier_id, private.public).encode(peer.version)
        raise CommandError(errors.INTERNAL)

    def _ndel(self, peer: Peer, t: Transmission, command: c.Ndel, queue: Queue) -> Answer:
        self._use(queue)
        former = queue.notifier
        if former is not None:
            self._store.delete_notifier(queue)
            self._notifications.deleted(former)
            self._counters.notifiers_deleted += 1
        return _OK

    def _get(self, peer: Peer, t: Transmission, command: c.Get, queue: Queue) -> Answer:
        self._use(queue)
        subscription = peer.subscriptions.get(queue.recipient_id)
        if subscription is None:
            subscription = Subscription(peer, getter=True)
        elif not subscription.getter:
            self._counters.messages_got_prohibited += 1
            raise CommandError(errors.PROHIBITED)
        again = subscription.delivered is not None
        message = self._subscriptions.mark_delivered(subscription, queue)
        peer.subscriptions[queue.recipient_id] = subscription
        if message is None:
            self._counters.messages_got_none += 1
            return _OK
        if again:
            self._counters.messages_got_duplicate += 1
        else:
            self._counters.messages_got += 1
        return message

    def _ack(self, peer: Peer, t: Transmission, command: c.Ack, queue: Queue) -> Answer:
        self._use(queue)
        answer, removed = self._subscriptions.acknowledge(peer, queue, command.msg_id)
        if removed is not None and not removed.is_quota:
            counters = self._counters
            counters.messages_received += 1
            if peer.subscriptions[queue.recipient_id].getter:
                counters.messages_received_get += 1
            if removed.notify:
                counters.messages_received_notify += 1
        return answer

    def _off(self, peer: Peer, t: Transmission, command: c.Off, queue: Queue) -> Answer:
        self._store.set_status(queue, Status.OFF)
        return _OK

    def _del(self, peer: Peer, t: Transmission, command: c.Del, queue: Queue) -> Answer:
        former = queue.notifier
        self._store.delete(queue)
        self._subscriptions.delete(queue, peer)
        self._notifications.deleted(former)
        self._counters.queues_deleted += 1
        if queue.sender_key is None:
            self._counters.queues_deleted_new += 1
        else:
            self._counters.queues_deleted_secured += 1
        return _OK

    def _que(self, peer: Peer, t: Transmission, command: c.Que, queue: Queue) -> Answer:
        self._use(queue)
        information = queue_information(
            queue,
            self._store.head(queue),
            self._store.message_count(queue),
            peer.subscriptions.get(queue.recipient_id),
        )
        return Info(information).encode(peer.version)

    # -- the sender's and the link client's commands

    def _skey(self, peer: Peer, t: Transmission, command: c.Skey, queue: Queue) -> Answer:
        self._use(queue)
        self._secure(queue, command.key)
        return _OK

    def _send(self, peer: Peer, t: Transmission, command: c.Send, queue: Queue) -> Answer:
        self._note_use(queue)
        counters = self._counters
        if len(command.body) > max_message_length(peer.version):
            counters.messages_sent_large += 1
            raise CommandError(errors.LARGE_MSG)
        if queue.status is not Status.ACTIVE:
            self._refuse_send(queue)
        if queue.link is not None and queue.is_secured_messaging:
            # A link that stays is no harm to the message; the next one tries again (§4, LKEY).
            with suppress(StoreError):
                self._store.delete_link(queue)
        now = self._clock()
        if self._rules.expire_on_send:
            before = self._rules.messages_kept_since(now)
            counters.messages_expired += self._store.expire(queue, before)
        message = Message(new_id(self._random), int(now), command.notify, command.body)
        written = self._store.write(queue, message, self._rules.quota)
        if not written.accepted:
            counters.messages_sent_quota += 1
            raise CommandError(errors.QUOTA)
        if written.was_empty:
            self._subscriptions.deliver(queue, message)
        if command.notify:
            if queue.notifier is not None:
                # The message is accepted: an error now would have it sent again.
                with suppress(StoreError):
                    self._notifications.add(queue.notifier, message)
            counters.messages_sent_notify += 1
        counters.messages_sent += 1
        return _OK

    def _refuse_send(self, queue: Queue) -> None:
        if queue.status is Status.BLOCKED and queue.blocked is not None:
            self._counters.messages_sent_blocked += 1
            raise CommandError(errors.blocked(queue.blocked))
        self._counters.messages_sent_auth += 1
        raise CommandError(errors.AUTH)

    def _lkey(self, peer: Peer, t: Transmission, command: c.Lkey, queue: Queue) -> Answer:
        self._use(queue)
        if queue.link is None or queue.link.link_id != t.entity_id:
            raise CommandError(errors.AUTH)
        self._secure(queue, command.key)
        return Lnk(queue.sender_id, queue.link.data).encode(peer.version)

    def _lget(self, peer: Peer, t: Transmission, command: c.Lget, queue: Queue) -> Answer:
        self._use(queue)
        if queue.link is None or queue.link.link_id != t.entity_id:
            raise CommandError(errors.AUTH)
        return Lnk(queue.sender_id, queue.link.data).encode(peer.version)

    def _ping(self, peer: Peer, t: Transmission, command: c.Ping, queue: None) -> Answer:
        return b"PONG"

    # -- the notifier's commands

    def _nsub(self, peer: Peer, t: Transmission, command: c.Nsub, queue: Queue) -> Answer:
        notifier = queue.notifier
        if notifier is None or notifier.notifier_id != t.entity_id:
            raise CommandError(errors.AUTH)
        if peer.service is None:
            return self._notifications.subscribe(peer, notifier, queue)
        return self._notifications.subscribe_by_service(
            peer, peer.service.service_id, notifier, queue
        )

    def _nsubs(self, peer: Peer, t: Transmission, command: c.Nsubs, queue: None) -> Answer:
        return self._notifications.subscribe_all(peer, t.entity_id)

    def _subs(self, peer: Peer, t: Transmission, command: c.Subs, queue: None) -> Answer:
        raise CommandError(errors.PROHIBITED)

    # -- private routing: this relay does not proxy

    def _prxy(self, peer: Peer, t: Transmission, command: c.Prxy, queue: None) -> Answer:
        raise CommandError(errors.PROXY_BASIC_AUTH)

    def _pfwd(self, peer: Peer, t: Transmission, command: c.Pfwd, queue: None) -> Answer:
        raise CommandError(errors.PROXY_NO_SESSION)


def _right_password(password: bytes | None, given: bytes | None) -> bool:
    """Whether `given` opens NEW; without a password anything does (§4, §11)."""
    return password is None or hmac.compare_digest(password, given or b"")


_EXECUTE: Final[dict[type[c.Command], Callable[..., Any]]] = {
    c.New: Execution._new,
    c.Sub: Execution._sub,
    c.Key: Execution._key,
    c.Rkey: Execution._rkey,
    c.Lset: Execution._lset,
    c.Ldel: Execution._ldel,
    c.Nkey: Execution._nkey,
    c.Ndel: Execution._ndel,
    c.Get: Execution._get,
    c.Ack: Execution._ack,
    c.Off: Execution._off,
    c.Del: Execution._del,
    c.Que: Execution._que,
    c.Skey: Execution._skey,
    c.Send: Execution._send,
    c.Lkey: Execution._lkey,
    c.Lget: Execution._lget,
    c.Ping: Execution._ping,
    c.Nsub: Execution._nsub,
    c.Nsubs: Execution._nsubs,
    c.Subs: Execution._subs,
    c.Prxy: Execution._prxy,
    c.Pfwd: Execution._pfwd,
}
