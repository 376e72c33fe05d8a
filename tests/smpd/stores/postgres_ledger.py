"""What relays were told about queues that they share, to be compared with the database."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import psycopg

from smpd.queues import Queue, Status
from smpd.stores.interface import StoreError, Wanted, What
from smpd.stores.postgres_changes import shared
from tests.smpd.stores.postgres_sites import QUOTA, Site
from tests.smpd.stores.records import NOW, message, new_id, new_queue, notification, notifier
from txsimplex.smp.commands import LinkData

_LASTING = 5
"""Ticks of the ledger's clock after which messages go."""


@dataclass(eq=False)
class Asked:
    """What a site was asked to do; `msg_id` is of what was written, or removed, if it was."""

    site: Site
    queue: Queue
    place: int = -1
    msg_id: bytes | None = None

    @property
    def done(self) -> bool:
        """Whether that is certain."""
        return self.site.answers[self.place] == "OK"


@dataclass(eq=False)
class Member:
    """A queue, and the notifier that it may have."""

    made: Asked
    notifier_id: bytes | None

    @property
    def queue(self) -> Queue:
        """The queue."""
        return self.made.queue


class Ledger:
    """Has sites do what `chance` says to the queues that are there; if `expires`, that, too."""

    def __init__(self, chance: Random, *, expires: bool) -> None:
        self._chance = chance
        self._expires = expires
        self._members: list[Member] = []
        self._sent: list[Asked] = []
        self._removed: list[Asked] = []
        self._deleted: list[Asked] = []
        self._all: list[Asked] = []
        self._now = NOW
        self.faults: list[str] = []
        """Tracebacks of what went wrong where it must not."""

    @property
    def succeeded(self) -> int:
        """How many changes are certain."""
        return sum(each.done for each in self._all)

    def do_something(self, site: Site) -> None:
        """To one of the queues."""
        member = self._chance.choice(self._members)
        actions: list[tuple[int, Callable[[Site, Member], None]]] = [
            (35, self._send),
            (25, self._acknowledge),
            (6, self._claim),
            (4, self._set_status),
            (5, self._set_link),
            (5, self._notify),
            (5, self._take_notifications),
            (3, self._set_notifier),
            (2, self._replace),
            (6, self._count),
        ]
        if self._expires:
            actions += [(3, self._expire), (1, self._expire_all)]
        weights = [weight for weight, _ in actions]
        ((_, action),) = self._chance.choices(actions, weights)
        action(site, member)

    def _ask(self, asked: Asked, wanted: Sequence[Wanted], work: Callable[[Queue], object]) -> None:
        """Has something done to a queue that is found as what is wanted first, if it is there."""
        store, entity_id = asked.site.store, wanted[0].entity_id
        find = {
            What.RECIPIENT: store.by_recipient,
            What.SENDER: store.by_sender,
            What.NOTIFIER: store.by_notifier,
        }[wanted[0].what]

        def guarded() -> None:
            try:
                queue = find(entity_id)
                if queue is not None:
                    _check_memory(queue)
                    work(queue)
                    _check_memory(queue)
            except StoreError:
                raise
            except Exception:  # noqa: BLE001
                self.faults.append(traceback.format_exc())
                raise StoreError("a fault") from None

        self._note(asked, wanted, guarded)

    def _note(self, asked: Asked, wanted: Sequence[Wanted], work: Callable[[], Any]) -> None:
        asked.place = len(asked.site.answers)
        self._all.append(asked)
        asked.site.ask(wanted, work, object())

    def add(self, site: Site) -> None:
        """A queue, perhaps with a notifier."""
        new = new_queue(notifier=notifier() if self._chance.random() < 0.5 else None)
        notifier_id = None if new.notifier is None else new.notifier.notifier_id
        made = Asked(site, new)
        wanted = [Wanted(What.NEW_SENDER, new.sender_id)]
        self._note(made, wanted, lambda: site.store.add(new))
        self._members.append(Member(made, notifier_id))

    def _send(self, site: Site, member: Member) -> None:
        one, sent = message(self._now), Asked(site, member.queue)

        def write(queue: Queue) -> None:
            if site.store.write(queue, one, QUOTA).accepted:
                sent.msg_id = one.msg_id

        self._sent.append(sent)
        self._ask(sent, [Wanted(What.SENDER, member.queue.sender_id)], write)

    def _acknowledge(self, site: Site, member: Member) -> None:
        removed = Asked(site, member.queue)

        def remove(queue: Queue) -> None:
            first = site.store.head(queue)
            if first is not None:
                assert site.store.remove(queue, first.msg_id) == first
                removed.msg_id = first.msg_id

        self._removed.append(removed)
        wanted = [Wanted(What.RECIPIENT, member.queue.recipient_id, 2)]
        self._ask(removed, wanted, remove)

    def _of_recipient(
        self, site: Site, member: Member, work: Callable[[Queue], object], *more: Wanted
    ) -> None:
        wanted = [Wanted(What.RECIPIENT, member.queue.recipient_id, 1), *more]
        self._ask(Asked(site, member.queue), wanted, work)

    def _claim(self, site: Site, member: Member) -> None:
        def claim(queue: Queue) -> None:
            site.store.claim_queue(queue)
            assert site.store.is_ours(queue)

        self._of_recipient(site, member, claim)

    def _set_status(self, site: Site, member: Member) -> None:
        status = self._chance.choice([Status.ACTIVE, Status.OFF])
        self._of_recipient(site, member, lambda queue: site.store.set_status(queue, status))

    def _count(self, site: Site, member: Member) -> None:
        self._now += 1
        self._of_recipient(site, member, site.store.message_count)

    def _set_link(self, site: Site, member: Member) -> None:
        link_id = new_id()

        def change(queue: Queue) -> None:
            if queue.link is not None:
                site.store.delete_link(queue)
            else:
                site.store.set_link(queue, link_id, LinkData(b"fixed", b"user"))

        self._of_recipient(site, member, change, Wanted(What.NEW_LINK, link_id))

    def _set_notifier(self, site: Site, member: Member) -> None:
        new = notifier()

        def change(queue: Queue) -> None:
            if queue.notifier is not None:
                site.store.delete_notifier(queue)
            else:
                site.store.set_notifier(queue, new)

        self._of_recipient(site, member, change, Wanted(What.NOTIFIER, new.notifier_id))
        member.notifier_id = new.notifier_id

    def _of_notifier(self, site: Site, member: Member, work: Callable[[Queue], object]) -> None:
        if member.notifier_id is not None:
            wanted = [Wanted(What.NOTIFIER, member.notifier_id)]
            self._ask(Asked(site, member.queue), wanted, work)

    def _notify(self, site: Site, member: Member) -> None:
        one, notifier_id = message(self._now), member.notifier_id

        def write(queue: Queue) -> None:
            if site.store.write(queue, one, QUOTA).accepted:
                assert notifier_id is not None
                site.store.add_notification(notifier_id, notification(self._now))

        self._of_notifier(site, member, write)

    def _take_notifications(self, site: Site, member: Member) -> None:
        notifier_id = member.notifier_id

        def take(queue: Queue) -> None:
            assert notifier_id is not None
            site.store.claim_notifier(queue)
            site.store.take_notifications(notifier_id)

        self._of_notifier(site, member, take)

    def _expire(self, site: Site, member: Member) -> None:
        before = self._now - _LASTING
        wanted = [Wanted(What.SENDER, member.queue.sender_id, 0, before)]
        self._ask(Asked(site, member.queue), wanted, lambda queue: site.store.expire(queue, before))

    def _expire_all(self, site: Site, member: Member) -> None:
        for step in site.store.expire_all(self._now - _LASTING, 3):
            assert not isinstance(step, int)

    def _replace(self, site: Site, member: Member) -> None:
        deleted = Asked(site, member.queue)
        self._members.remove(member)
        self._deleted.append(deleted)
        wanted = [Wanted(What.RECIPIENT, member.queue.recipient_id)]
        self._ask(deleted, wanted, site.store.delete)
        self.add(site)

    def check(self, database: str) -> None:
        """What was answered with OK is so, and the tables go together."""
        with psycopg.connect(database) as connection:
            connection.execute("SET search_path = smpd")
            for nothing in _NOTHING:
                assert connection.execute(nothing).fetchall() == [], nothing
            there: dict[bytes, list[bytes]] = {}
            for recipient_id, msg_id in connection.execute(_MESSAGES):
                left = there.setdefault(recipient_id, [])
                if msg_id is not None:
                    left.append(msg_id)
        surely = [each.msg_id for each in self._removed if each.done and each.msg_id is not None]
        assert len(set(surely)) == len(surely)
        for left in there.values():
            assert len(set(left)) == len(left)
            assert not set(surely).intersection(left)
        for deleted in self._deleted:
            assert not deleted.done or deleted.queue.recipient_id not in there
        for member in self._members:
            assert not member.made.done or member.queue.recipient_id in there
        if not self._expires:
            self._check_sent(there)

    def _check_sent(self, there: dict[bytes, list[bytes]]) -> None:
        perhaps = {each.msg_id for each in self._removed}
        for sent in self._sent:
            left = there.get(sent.queue.recipient_id)
            if sent.done and sent.msg_id is not None and left is not None:
                assert sent.msg_id in left or sent.msg_id in perhaps

    def check_reading(self, site: Site) -> None:
        """One who knows nothing of them reads the queues to their ends."""
        for member in self._members:
            if not member.made.done:
                continue
            counts: list[int] = []

            def read(queue: Queue) -> None:
                counts.append(site.store.message_count(queue))  # noqa: B023
                first = site.store.head(queue)
                if first is not None:
                    assert site.store.remove(queue, first.msg_id) == first

            while not counts or counts[-1]:
                wanted = [Wanted(What.RECIPIENT, member.queue.recipient_id, 2)]
                self._ask(Asked(site, member.queue), wanted, read)
                site.wait()
                assert not self.faults
            assert counts == list(range(counts[0], -1, -1))


_MESSAGES = """
    SELECT recipient_id, msg_id FROM queue LEFT JOIN message ON message.queue = queue.number
    ORDER BY message.number"""
_NOTHING = (
    """SELECT messages FROM queue_state WHERE messages <>
        (SELECT count(*) FROM message WHERE message.queue = queue_state.number)""",
    """SELECT number FROM queue FULL JOIN queue_state USING (number)
        WHERE recipient_id IS NULL OR version IS NULL""",
    "SELECT number FROM message WHERE queue NOT IN (SELECT number FROM queue)",
    "SELECT link_id FROM link WHERE queue NOT IN (SELECT number FROM queue)",
    """SELECT number FROM notification WHERE notifier_id NOT IN
        (SELECT notifier_id FROM queue WHERE notifier_id IS NOT NULL)""",
)
"""What there is none of."""


def _check_memory(queue: Queue) -> None:
    """What is in memory of a queue that is locked goes together."""
    messages = shared(queue)
    if queue.status is Status.DELETED:
        return
    assert len(messages.waiting) == len(messages.numbers) <= messages.count <= QUOTA + 1
    assert messages.numbers == sorted(set(messages.numbers))
