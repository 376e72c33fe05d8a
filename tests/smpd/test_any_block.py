"""Whatever clients send, every transmission is answered, and nothing is raised."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, strategies as st

from tests.smpd.people import Person, key, new_notifier, new_queue, new_relay, random
from tests.txsimplex.smp.strategies import dh_keys, smp_commands, versions
from txsimplex.keys import Algorithm, PrivateKey, PublicKey
from txsimplex.smp import commands as c, messages as m
from txsimplex.smp.commands import LinkData, QueueMode, Role
from txsimplex.smp.errors import Error
from txsimplex.smp.transmissions import fits

KEYS = [key(Algorithm.ED25519), key(Algorithm.ED448), key(Algorithm.X25519)]


def answered(person: Person, transmissions: list[bytes]) -> list[m.Message | Error]:
    """The answers to a block, as many as it has transmissions."""
    outcome = person.batch(transmissions)
    answers = person.received([*outcome.refused, *outcome.answers])
    assert len(answers) == len(transmissions)
    assert all(isinstance(one, (m.Message, Error)) for one in answers)
    for message in person.received(outcome.messages):
        assert isinstance(message, m.Msg)
    return answers


class Place:
    """A relay with queues of every mode, of which the keys are among `KEYS`."""

    def __init__(self, version: int, role: Role | None) -> None:
        self.relay = new_relay(quota=2, expire_on_send=True)
        self.person = Person(self.relay, version, role if version >= 16 else None)
        self.owner = Person(self.relay)
        self.entities = [b"", random(24), b"\xff" * 255]
        if self.person.service is not None:
            self.entities.append(self.person.service_id)
        for mode in (QueueMode.MESSAGING, QueueMode.CONTACT, None):
            recipient = new_queue(self.owner, mode)
            link_id = random(24)
            assert recipient.ask(c.Lset(link_id, LinkData(b"", b""))) == m.Ok()
            notifier = new_notifier(recipient)
            self.entities += [recipient.recipient_id, recipient.sender_id]
            self.entities += [link_id, notifier.notifier_id]
            queue = self.relay.store.by_recipient(recipient.recipient_id)
            assert queue is not None
            assert queue.notifier is not None
            queue.recipient_keys = [one.public for one in KEYS]
            queue.notifier.key = KEYS[2].public

    def rounds(self) -> None:
        """All that happens at intervals."""
        for one in (self.person, self.owner):
            self.relay.ready(one.peer)
        self.relay.send_events()
        self.relay.send_notifications()
        self.relay.expire_notifications()
        for _ in self.relay.expire_messages(1):
            pass


def with_right_key(command: c.Command, private: PrivateKey) -> c.Command:
    """Commands that are signed with a key of theirs have that key."""
    if isinstance(command, c.New):
        return replace(command, recipient_key=private.public)
    if isinstance(command, (c.Skey, c.Lkey)):
        return replace(command, key=private.public)
    return command


@given(st.data(), versions, st.sampled_from([None, *Role]))
def test_every_command_is_answered(data: st.DataObject, version: int, role: Role | None) -> None:
    place = Place(version, role)
    person = place.person
    for _ in range(data.draw(st.integers(1, 3), label="blocks")):
        transmissions = []
        for _ in range(data.draw(st.integers(1, 6), label="transmissions")):
            command = data.draw(smp_commands)
            private = data.draw(st.none() | st.sampled_from([*KEYS, person.service_key]))
            if private is not None and data.draw(st.booleans()):
                command = with_right_key(command, private)
            transmissions.append(
                person.transmission(
                    command,
                    data.draw(st.sampled_from(place.entities)),
                    private,
                    data.draw(st.sampled_from([b"", bytes(24), b"\xff" * 255])),
                    data.draw(st.sampled_from([None, None, False, True])),
                )
            )
        if fits(transmissions):
            answered(person, transmissions)
        person.full = place.owner.full = data.draw(st.booleans())
        place.rounds()
    person.leave()
    place.owner.leave()


@given(dh_keys, dh_keys)
def test_keys_of_any_value(dh: PublicKey, notifier_dh: PublicKey) -> None:
    """Those of small order too: the client harms itself alone."""
    person = Person(new_relay())
    new = c.New(KEYS[0].public, dh)
    new.notifier = c.NotifierRequest(KEYS[1].public, notifier_dh)
    (ids,) = answered(person, [person.transmission(new, b"", KEYS[0])])
    assert isinstance(ids, m.Ids)
    send = person.transmission(c.Send(True, b"hello"), ids.sender_id)
    assert answered(person, [send]) == [m.Ok()]
    (event,) = person.all_events()
    assert isinstance(event[1], m.Msg)
