"""Every store against models of what it should do (docs/spec/smp-server.md §6, §7, §8)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from smpd.queues import Link, Message, Queue, Status
from smpd.stores.interface import Collision, Notification, Store
from tests.smpd.people import ID_SIZE, random
from tests.smpd.stores.records import (
    NOW,
    at_once,
    link,
    message,
    new_id,
    new_queue,
    notification,
    notifier,
    service,
)
from txsimplex.smp.commands import LinkData


class QueueOfMessages(RuleBasedStateMachine):
    """Messages of one queue against the pseudo code of smp-server.md §6."""

    new_store: ClassVar[Callable[[], Store]]

    @initialize(quota=st.integers(0, 5))
    def begin(self, quota: int) -> None:
        """A store with one queue."""
        self.store = type(self).new_store()
        self.queue = new_queue()
        self.store.add(self.queue)
        self.quota = quota
        self.model: list[Message] = []
        self.can_write = True
        self.now = NOW

    @rule(body=st.binary(max_size=8), notify=st.booleans())
    def write(self, body: bytes, notify: bool) -> None:
        """A sender's message."""
        one = message(self.now, body, notify)
        was_empty = not self.model
        accepted = False
        if self.can_write or was_empty:
            self.can_write = accepted = len(self.model) < self.quota
            marker = Message(one.msg_id, one.timestamp, False, None)
            self.model.append(one if accepted else marker)
        written = self.store.write(self.queue, one, self.quota)
        assert (written.accepted, written.was_empty) == (accepted, was_empty)

    @precondition(lambda self: self.model)
    @rule()
    def remove_the_first(self) -> None:
        """The recipient acknowledges."""
        first = self.model.pop(0)
        assert self.store.remove(self.queue, first.msg_id) == first

    @rule(data=st.data())
    def remove_another(self, data: st.DataObject) -> None:
        """An id that is not the first one's removes nothing."""
        others = [one.msg_id for one in self.model[1:]]
        msg_id = data.draw(st.sampled_from([*others, b"", b"\0" * ID_SIZE]))
        assert self.store.remove(self.queue, msg_id) is None

    @rule(seconds=st.integers(0, 3))
    def wait(self, seconds: int) -> None:
        """Time passes."""
        self.now += seconds

    @rule(ttl=st.integers(-1, 4), all_queues=st.booleans())
    def expire(self, ttl: int, all_queues: bool) -> None:
        """Old messages go, up to the first young one or marker."""
        before = self.now - ttl
        expired = 0
        while self.model and not self.model[0].is_quota and self.model[0].timestamp < before:
            del self.model[0]
            expired += 1
        if all_queues:
            assert sum(at_once(self.store.expire_all(before, 10))) == expired
        else:
            assert self.store.expire(self.queue, before) == expired

    @invariant()
    def the_same_first_and_size(self) -> None:
        """What a recipient sees."""
        assert self.store.head(self.queue) == (self.model[0] if self.model else None)
        assert self.store.message_count(self.queue) == len(self.model)


@dataclass
class _Records:
    """What a store should know."""

    queues: list[Queue] = field(default_factory=list)
    links: dict[bytes, Queue] = field(default_factory=dict)
    notifiers: dict[bytes, Queue] = field(default_factory=dict)
    services: dict[bytes, bytes | None] = field(default_factory=dict)
    """The service of each notifier."""
    waiting: dict[bytes, list[Notification]] = field(default_factory=dict)


class Records(RuleBasedStateMachine):
    """Queues with links, notifiers, services and notifications against dictionaries."""

    new_store: ClassVar[Callable[[], Store]]
    queues: Bundle[Queue] = Bundle("queues")

    @initialize()
    def begin(self) -> None:
        """An empty store; a few ids that are used again and again."""
        self.store = type(self).new_store()
        self.known = _Records()
        self.link_ids = [new_id() for _ in range(3)]
        self.notifier_ids = [new_id() for _ in range(3)]
        self.service_ids = [self.store.add_service(service()).service_id for _ in range(2)]
        self.gone: list[Queue] = []

    def _here(self, queue: Queue) -> bool:
        return queue in self.known.queues

    def _forget_link(self, queue: Queue) -> None:
        self.known.links = {i: q for i, q in self.known.links.items() if q is not queue}

    def _forget_notifier(self, queue: Queue) -> None:
        for notifier_id in [i for i, q in self.known.notifiers.items() if q is queue]:
            del self.known.notifiers[notifier_id]
            self.known.services.pop(notifier_id, None)
            self.known.waiting.pop(notifier_id, None)

    @rule(target=queues, with_link=st.integers(-1, 2), with_notifier=st.integers(-1, 2))
    def add(self, with_link: int, with_notifier: int) -> Queue:
        """A new queue, perhaps with ids that are taken."""
        wanted_link = None if with_link < 0 else link(self.link_ids[with_link])
        wanted_notifier = (
            None if with_notifier < 0 else notifier(notifier_id=self.notifier_ids[with_notifier])
        )
        queue = new_queue(link=wanted_link, notifier=wanted_notifier)
        if (wanted_link is not None and wanted_link.link_id in self.known.links) or (
            wanted_notifier is not None and wanted_notifier.notifier_id in self.known.notifiers
        ):
            with pytest.raises(Collision):
                self.store.add(queue)
            return queue
        self.store.add(queue)
        self.known.queues.append(queue)
        if wanted_link is not None:
            self.known.links[wanted_link.link_id] = queue
        if wanted_notifier is not None:
            self.known.notifiers[wanted_notifier.notifier_id] = queue
            self.known.services[wanted_notifier.notifier_id] = None
        return queue

    @rule(queue=queues, number=st.integers(0, 2))
    def set_link(self, queue: Queue, number: int) -> None:
        """A link, perhaps of another queue."""
        if not self._here(queue):
            return
        link_id, data = self.link_ids[number], LinkData(random(8), random(8))
        if self.known.links.get(link_id, queue) is not queue:
            with pytest.raises(Collision):
                self.store.set_link(queue, link_id, data)
            return
        self.store.set_link(queue, link_id, data)
        self._forget_link(queue)
        self.known.links[link_id] = queue
        assert queue.link == Link(link_id, data)

    @rule(queue=queues)
    def delete_link(self, queue: Queue) -> None:
        """No link any more."""
        if self._here(queue):
            self.store.delete_link(queue)
            self._forget_link(queue)

    @rule(queue=queues, number=st.integers(0, 2))
    def set_notifier(self, queue: Queue, number: int) -> None:
        """A notifier, perhaps with an id that is taken."""
        if not self._here(queue):
            return
        notifier_id = self.notifier_ids[number]
        if notifier_id in self.known.notifiers:
            with pytest.raises(Collision):
                self.store.set_notifier(queue, notifier(notifier_id=notifier_id))
            return
        self.store.set_notifier(queue, notifier(notifier_id=notifier_id))
        self._forget_notifier(queue)
        self.known.notifiers[notifier_id] = queue
        self.known.services[notifier_id] = None

    @rule(queue=queues)
    def delete_notifier(self, queue: Queue) -> None:
        """No notifier any more."""
        if self._here(queue):
            self.store.delete_notifier(queue)
            self._forget_notifier(queue)

    @rule(queue=queues, number=st.integers(-1, 1))
    def associate(self, queue: Queue, number: int) -> None:
        """The notifier changes its service."""
        if not self._here(queue) or queue.notifier is None:
            return
        service_id = None if number < 0 else self.service_ids[number]
        self.store.associate(queue, service_id)
        self.known.services[queue.notifier.notifier_id] = service_id

    @rule(queue=queues, age=st.integers(0, 3))
    def notify(self, queue: Queue, age: int) -> None:
        """A notification waits."""
        if self._here(queue) and queue.notifier is not None:
            one = notification(NOW - age)
            self.store.add_notification(queue.notifier.notifier_id, one)
            self.known.waiting.setdefault(queue.notifier.notifier_id, []).append(one)

    @rule(number=st.integers(0, 2))
    def take(self, number: int) -> None:
        """Notifications are delivered."""
        notifier_id = self.notifier_ids[number]
        taken = self.store.take_notifications(notifier_id)
        assert taken == self.known.waiting.pop(notifier_id, [])

    @rule(age=st.integers(0, 3))
    def expire_notifications(self, age: int) -> None:
        """Old notifications go."""
        expired = 0
        for notifier_id, waiting in list(self.known.waiting.items()):
            young = [one for one in waiting if one.timestamp >= NOW - age]
            expired += len(waiting) - len(young)
            if young:
                self.known.waiting[notifier_id] = young
            else:
                del self.known.waiting[notifier_id]
        assert self.store.expire_notifications(NOW - age) == expired

    @rule(queue=queues)
    def delete(self, queue: Queue) -> None:
        """The queue and all that is its."""
        if self._here(queue):
            self.store.delete(queue)
            self.known.queues.remove(queue)
            self.gone.append(queue)
            self._forget_link(queue)
            self._forget_notifier(queue)

    @invariant()
    def everything_is_found(self) -> None:
        """The same answers as the model."""
        store, known = self.store, self.known
        assert store.queue_count() == len(known.queues)
        for queue in known.queues:
            assert store.by_recipient(queue.recipient_id) is queue
            assert store.by_sender(queue.sender_id) is queue
        for queue in self.gone:
            assert store.by_recipient(queue.recipient_id) is None
            assert store.by_sender(queue.sender_id) is None
            assert queue.status is Status.DELETED
        for link_id in self.link_ids:
            assert store.by_link(link_id) is known.links.get(link_id)
        for notifier_id in self.notifier_ids:
            assert store.by_notifier(notifier_id) is known.notifiers.get(notifier_id)
        assert set(store.notifiers_waiting()) == set(known.waiting)
        for service_id in self.service_ids:
            count = list(known.services.values()).count(service_id)
            assert store.notifier_count(service_id) == count


def machines(new_store: Callable[[], Store]) -> tuple[type, type]:
    """The test cases of the state machines for stores that `new_store` makes."""
    usual = settings.default
    assert usual is not None
    made = []
    for machine in (QueueOfMessages, Records):
        kind: type[RuleBasedStateMachine] = type(
            f"{machine.__name__}In", (machine,), {"new_store": staticmethod(new_store)}
        )
        kind.TestCase.settings = settings(
            max_examples=usual.max_examples // 2, stateful_step_count=25
        )
        made.append(kind.TestCase)
    return made[0], made[1]
