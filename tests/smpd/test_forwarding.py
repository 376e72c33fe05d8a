"""Commands that come by way of a proxy, at the relay that they are for (smp-proxy.md §3)."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from smpd.queues import Queue
from smpd.stores.interface import StoreError
from smpd.stores.memory import MemoryStore
from tests.smpd.people import (
    Person,
    Recipient,
    expect,
    key,
    new_queue,
    new_relay,
    random,
)
from txsimplex.boxes import BoxKey, authenticator
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp import commands as c, errors, messages as m
from txsimplex.smp.commands import LinkData, QueueMode
from txsimplex.smp.errors import BlockingInformation, BlockingReason, Error
from txsimplex.smp.forwarding import (
    Forwarded,
    open_answer,
    open_rres,
    seal_forwarded,
    seal_rfwd,
)
from txsimplex.smp.transmissions import Framing, Received, frame

ALGORITHMS = [Algorithm.ED25519, Algorithm.ED448, Algorithm.X25519]


@dataclass
class Sender:
    """Sends to a relay through the connection of a proxy, and reads what comes back."""

    proxy: Person
    version: int = 17
    private: PrivateKey = field(default_factory=lambda: key(Algorithm.X25519))

    def __post_init__(self) -> None:
        self.framing = Framing(self.version, self.proxy.session_id)

    def renew(self) -> None:
        """A key for the next command."""
        self.private = key(Algorithm.X25519)

    @property
    def box(self) -> BoxKey:
        """What relay and sender share for this command."""
        return BoxKey(self.private.exchange(self.proxy.session_key.public))

    def inner(
        self,
        command: c.Command,
        entity_id: bytes,
        private: PrivateKey | None = None,
        corr_id: bytes | None = None,
    ) -> bytes:
        """The transmission for the relay."""
        corr_id = random(24) if corr_id is None else corr_id
        authorized = self.framing.authorized(corr_id, entity_id, command.encode(self.version))
        proof = b""
        if private is not None and private.algorithm is Algorithm.X25519:
            box = BoxKey(private.exchange(self.proxy.session_key.public))
            proof = authenticator(box, corr_id, authorized)
        elif private is not None:
            proof = private.sign(authorized)
        return self.framing.transmission(authorized, proof)

    def forward(self, content: bytes, corr_id: bytes) -> tuple[bytes, m.Message | Error]:
        """What the relay answers to RFWD with this content, and its correlation id."""
        nonce = random(24)
        return nonce, self.proxy.ask(self.rfwd(content, corr_id, nonce), corr_id=nonce)

    def rfwd(self, content: bytes, corr_id: bytes, nonce: bytes) -> c.Rfwd:
        """RFWD with this content."""
        sealed = seal_forwarded(self.box, corr_id, content)
        forwarded = Forwarded(corr_id, self.version, self.private.public, sealed)
        return c.Rfwd(seal_rfwd(BoxKey(self.proxy.secret), nonce, forwarded))

    def received(self, content: bytes, corr_id: bytes | None = None) -> Received:
        """The answer to the one transmission in a content."""
        corr_id = random(24) if corr_id is None else corr_id
        nonce, answer = self.forward(content, corr_id)
        body = expect(answer, m.Rres).response
        opened = open_answer(self.box, corr_id, open_rres(BoxKey(self.proxy.secret), nonce, body))
        (received,) = self.framing.read_messages(opened)
        return received

    def ask(
        self, command: c.Command, entity_id: bytes, private: PrivateKey | None = None
    ) -> m.Message | Error:
        """The answer to a command, with a new key."""
        self.renew()
        corr_id = random(24)
        received = self.received(frame([self.inner(command, entity_id, private, corr_id)]), corr_id)
        assert (received.corr_id, received.entity_id) == (corr_id, entity_id)
        message = received.message
        assert isinstance(message, m.Message), message
        return message.error if isinstance(message, m.Err) else message


@pytest.fixture
def person() -> Person:
    """A recipient's connection."""
    return Person(new_relay(quota=2))


@pytest.fixture
def recipient(person: Person) -> Recipient:
    """A queue of it."""
    return new_queue(person)


@pytest.fixture
def sender(person: Person) -> Sender:
    """A sender that uses a proxy."""
    return Sender(Person(person.relay))


def test_192_an_unsigned_message_is_delivered(
    person: Person, recipient: Recipient, sender: Sender
) -> None:
    assert sender.ask(c.Send(False, b"by proxy"), recipient.sender_id) == m.Ok()
    assert recipient.body(recipient.event()) == b"by proxy"
    assert person.relay.counters.forwarded_received == 1
    assert sender.proxy.events == []


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("version", [8, 11, 16, 17, 18])
def test_193_194_signed_messages_of_the_greatest_size(
    recipient: Recipient, sender: Sender, algorithm: Algorithm, version: int
) -> None:
    """§2: 16,048 bytes fit with every kind of key."""
    sender = Sender(sender.proxy, version)
    private = key(algorithm)
    assert sender.ask(c.Skey(private.public), recipient.sender_id, private) == m.Ok()
    body = random(16048)
    assert sender.ask(c.Send(True, body), recipient.sender_id, private) == m.Ok()
    assert recipient.body(recipient.event()) == body
    assert sender.ask(c.Send(True, body), recipient.sender_id) == errors.AUTH
    assert sender.ask(c.Send(True, body), recipient.sender_id, key(algorithm)) == errors.AUTH


def test_errors_of_the_command_are_told_the_sender_only(
    person: Person, recipient: Recipient, sender: Sender
) -> None:
    assert sender.ask(c.Send(False, b""), random(24)) == errors.AUTH
    for _ in range(2):
        assert sender.ask(c.Send(False, b"x"), recipient.sender_id) == m.Ok()
    assert sender.ask(c.Send(False, b"x"), recipient.sender_id) == errors.QUOTA
    assert sender.ask(c.Send(False, bytes(16049)), recipient.sender_id) == errors.LARGE_MSG
    blocked = BlockingInformation(BlockingReason.SPAM)
    person.relay.block_queue(recipient.sender_id, blocked)
    assert sender.ask(c.Send(False, b"x"), recipient.sender_id) == errors.blocked(blocked)
    old = Sender(sender.proxy, 11)
    assert old.ask(c.Send(False, b"x"), recipient.sender_id) == errors.AUTH


def test_183_links_by_proxy(person: Person, sender: Sender) -> None:
    contact, data = new_queue(person, QueueMode.CONTACT), LinkData(b"fixed", b"user")
    link_id = random(24)
    assert contact.ask(c.Lset(link_id, data)) == m.Ok()
    assert sender.ask(c.Lget(), link_id) == m.Lnk(contact.sender_id, data)
    one_time, private, other_link = new_queue(person), key(), random(24)
    assert one_time.ask(c.Lset(other_link, data)) == m.Ok()
    answer = sender.ask(c.Lkey(private.public), other_link, private)
    assert answer == m.Lnk(one_time.sender_id, data)
    assert sender.ask(c.Lget(), other_link) == errors.AUTH


def test_202_248_other_commands_are_prohibited(recipient: Recipient, sender: Sender) -> None:
    private = key()
    new = c.New(private.public, key(Algorithm.X25519).public, None, True)
    assert sender.ask(c.Sub(), recipient.recipient_id, recipient.private) == errors.PROHIBITED
    assert sender.ask(new, b"", private) == errors.PROHIBITED
    assert sender.ask(c.Ping(), b"") == errors.PROHIBITED
    assert sender.ask(c.Del(), recipient.recipient_id, recipient.private) == errors.PROHIBITED
    assert recipient.information()["qiSize"] == 0


def test_wrong_credentials_of_the_inner_command(recipient: Recipient, sender: Sender) -> None:
    private = key()
    assert sender.ask(c.Skey(private.public), recipient.sender_id) == errors.NO_AUTH
    assert sender.ask(c.Send(False, b""), b"") == errors.NO_ENTITY


def test_204_what_does_not_open_is_told_the_proxy(recipient: Recipient, sender: Sender) -> None:
    proxy = sender.proxy
    assert proxy.ask(c.Rfwd(random(100))) == errors.CRYPTO
    nonce = random(24)
    garbage = BoxKey(proxy.secret).seal(b"\x05not a forwarded command", nonce)
    assert proxy.ask(c.Rfwd(garbage), corr_id=nonce) == errors.SYNTAX
    nonce = random(24)
    forwarded = Forwarded(random(24), 17, sender.private.public, random(16242))
    sealed = seal_rfwd(BoxKey(proxy.secret), nonce, forwarded)
    assert proxy.ask(c.Rfwd(sealed), corr_id=nonce) == errors.CRYPTO
    one = sender.inner(c.Send(False, b""), recipient.sender_id)
    assert sender.forward(frame([one, one]), random(24))[1] == errors.BLOCK
    assert recipient.information()["qiSize"] == 0


@pytest.mark.parametrize("content", [b"", b"\0", b"\1\0\5ab", b"\1\0\2ab", b"\2\0\0\0\0"])
def test_a_content_that_cannot_be_read_is_told_the_sender(sender: Sender, content: bytes) -> None:
    """§3.1, 5: with an empty correlation id."""
    if content == b"\2\0\0\0\0":
        assert sender.forward(content, random(24))[1] == errors.BLOCK
        return
    received = sender.received(content)
    assert (received.corr_id, received.entity_id) == (b"", b"")
    assert received.message == m.Err(errors.BLOCK)


def test_203_without_a_key_of_the_client_nothing_is_forwarded(sender: Sender) -> None:
    sender.proxy.peer.secret = None
    assert sender.proxy.ask(c.Rfwd(random(100))) == Error(
        ("PROXY", "BROKER", "TRANSPORT", "NO_AUTH")
    )


def test_the_version_says_how_large_a_message_may_be(recipient: Recipient, sender: Sender) -> None:
    """smp-wire.md §14.1: 16,064 bytes before version 11."""
    for version, largest in ((10, 16064), (11, 16048)):
        one = Sender(sender.proxy, version)
        message = one.inner(c.Send(False, bytes(largest + 1)), recipient.sender_id)
        received = one.received(frame([message]))
        assert received.message == m.Err(errors.LARGE_MSG)


def test_a_failing_store_is_told_the_sender(sender: Sender) -> None:
    class Failing(MemoryStore):
        def by_sender(self, sender_id: bytes) -> Queue | None:
            raise StoreError("the disk is full")

    one = Sender(Person(new_relay(Failing())))
    assert one.ask(c.Send(False, b""), random(24)) == errors.store_error("the disk is full")


# -- a proxy that sends again


def test_a_command_that_comes_again_is_not_executed_again(
    recipient: Recipient, sender: Sender
) -> None:
    corr_id = random(24)
    content = frame([sender.inner(c.Send(False, b"once"), recipient.sender_id, None, corr_id)])
    assert sender.received(content, corr_id).message == m.Ok()
    for _ in range(3):
        assert sender.forward(content, corr_id)[1] == errors.PROHIBITED
    assert recipient.body(recipient.event()) == b"once"
    assert recipient.information()["qiSize"] == 1


def test_keys_are_remembered_for_each_connection(recipient: Recipient, sender: Sender) -> None:
    """A key is bound to its session: on another connection it opens nothing."""
    corr_id = random(24)
    content = frame([sender.inner(c.Send(False, b""), recipient.sender_id, None, corr_id)])
    assert sender.received(content, corr_id).message == m.Ok()
    sealed = seal_forwarded(sender.box, corr_id, content)
    other = Person(sender.proxy.relay)
    nonce = random(24)
    forwarded = Forwarded(corr_id, 17, sender.private.public, sealed)
    again = seal_rfwd(BoxKey(other.secret), nonce, forwarded)
    assert other.ask(c.Rfwd(again), corr_id=nonce) == errors.CRYPTO
    assert recipient.information()["qiSize"] == 1


def test_what_did_not_open_is_not_remembered(recipient: Recipient, sender: Sender) -> None:
    nonce = random(24)
    forwarded = Forwarded(random(24), 17, sender.private.public, random(16242))
    sealed = seal_rfwd(BoxKey(sender.proxy.secret), nonce, forwarded)
    assert sender.proxy.ask(c.Rfwd(sealed), corr_id=nonce) == errors.CRYPTO
    corr_id = random(24)
    content = frame([sender.inner(c.Send(False, b""), recipient.sender_id, None, corr_id)])
    assert sender.received(content, corr_id).message == m.Ok()


def test_a_session_is_full_when_no_more_keys_can_be_remembered() -> None:
    person = Person(new_relay(forwarded_keys=3))
    recipient, sender = new_queue(person), Sender(Person(person.relay))
    for number in range(3):
        forwarding = sender.proxy.peer.forwarding
        assert forwarding is None or not forwarding.is_full
        assert sender.ask(c.Send(False, bytes(number)), recipient.sender_id) == m.Ok()
    assert sender.proxy.peer.forwarding is not None
    assert sender.proxy.peer.forwarding.is_full


def test_switched_off_commands_may_come_again() -> None:
    """As with the reference."""
    person = Person(new_relay(forwarded_keys=0))
    recipient, sender = new_queue(person), Sender(Person(person.relay))
    corr_id = random(24)
    content = frame([sender.inner(c.Send(False, b""), recipient.sender_id, None, corr_id)])
    for _ in range(2):
        assert sender.received(content, corr_id).message == m.Ok()
    assert sender.proxy.peer.forwarding is not None
    assert not sender.proxy.peer.forwarding.is_full
    assert recipient.information()["qiSize"] == 2
