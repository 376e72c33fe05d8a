"""A client of SMP relays (docs/client.md).

    client = await connect(endpoint, address)
    queue = await client.create_queue(recipient_key, dh_key)
    await client.send(queue.sender_id, b"hello")
    event = await anext(client.events)

Every command is a coroutine that ends with the relay's answer or with one of the
exceptions of `txsimplex.client.errors`. What the relay sends by itself are events.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint
from twisted.logger import Logger

from txsimplex.addresses import RelayLocation, ServerAddress
from txsimplex.boxes import BoxError
from txsimplex.client.errors import (
    ClientError,
    DisconnectedError,
    TimedOutError,
    TooLargeError,
)
from txsimplex.client.events import EventBuffer
from txsimplex.client.exchange import Answer, Pending, Sent
from txsimplex.client.queues import CreatedQueue, sender_id_for
from txsimplex.client.sending import SenderCommands, of_kind, ok
from txsimplex.client.session import (
    CONNECT_TIMEOUT,
    SMP_ALPN,
    Service,
    Session,
    global_clock,
    open_session,
    utc_now,
)
from txsimplex.encoding import ParseError
from txsimplex.keys import PrivateKey, PublicKey, Random
from txsimplex.smp import commands
from txsimplex.smp.commands import (
    Command,
    LinkData,
    LinkRequest,
    NotifierRequest,
    QueueMode,
    QueueRequest,
)
from txsimplex.smp.messages import Ids, Info, Message, Msg, Nid, Ok, Pong, Sok, Soks
from txsimplex.smp.transmissions import Received, TooLarge, pack
from txsimplex.smp.versions import SMP_RANGE, VersionRange

COMMAND_TIMEOUT: Final = 30.0
"""Seconds that the relay may take to answer a command."""
EVENTS_KEPT: Final = 1000
"""Events that may wait to be taken before reading from the relay is paused."""
_CORR_ID_SIZE = 24

_log = Logger()


@dataclass(frozen=True, slots=True)
class Request:
    """A command for `SMPClient.send_many`: of which entity, and the key that authorises it.

    `corr_id` is 24 random bytes if it is not given. In a service's session,
    `service_signed` says whether the service signs too; None means as the command asks.
    """

    command: Command
    entity_id: bytes = field(default=b"", repr=False)
    key: PrivateKey | None = None
    corr_id: bytes | None = field(default=None, repr=False)
    service_signed: bool | None = None


async def connect(
    endpoint: IStreamClientEndpoint,
    address: ServerAddress | RelayLocation,
    *,
    versions: VersionRange = SMP_RANGE,
    alpn: bytes | None = SMP_ALPN,
    service: Service | None = None,
    proxy: bool = False,
    session_key: bool = True,
    context: SSL.Context | None = None,
    timeout: float | None = CONNECT_TIMEOUT,
    command_timeout: float | None = COMMAND_TIMEOUT,
    on_event: Callable[[Received], object] | None = None,
    events_kept: int = EVENTS_KEPT,
    clock: IReactorTime | None = None,
    random: Random = os.urandom,
    now: Callable[[], datetime] = utc_now,
) -> SMPClient:
    """A client connected to the relay with the identity of `address`, at `endpoint`.

    See `open_session` for what connecting does, its parameters and exceptions, and
    `SMPClient` for the others.
    """
    clock = clock or global_clock()
    session = await open_session(
        endpoint,
        address,
        versions=versions,
        alpn=alpn,
        service=service,
        proxy=proxy,
        session_key=session_key,
        context=context,
        timeout=timeout,
        clock=clock,
        random=random,
        now=now,
    )
    return SMPClient(
        session,
        command_timeout=command_timeout,
        on_event=on_event,
        events_kept=events_kept,
        clock=clock,
        random=random,
    )


class SMPClient(SenderCommands):
    """Commands and events of one connection to a relay.

    Events, which are the `Received` messages that answer no command, go to `on_event`
    as they come, or wait in `events`, an async iterator. When `events_kept` of them
    wait, nothing more is read, answers to commands included: take events in a task of
    their own, or raise the limit. `command_timeout` is in seconds, None for no limit;
    each method that sends a command takes its own `timeout` too.

    Commands raise `RelayError` for an answer ``ERR``, `TimedOutError`,
    `DisconnectedError`, `TooLargeError`, and `UnexpectedAnswerError`. A connection that
    is lost stays so: connecting again, and subscribing, is for the caller.
    """

    def __init__(
        self,
        session: Session,
        *,
        command_timeout: float | None = COMMAND_TIMEOUT,
        on_event: Callable[[Received], object] | None = None,
        events_kept: int = EVENTS_KEPT,
        clock: IReactorTime | None = None,
        random: Random = os.urandom,
    ) -> None:
        self.session = session
        blocks = session.blocks
        self.events = EventBuffer(events_kept, blocks.pause_reading, blocks.resume_reading)
        self._on_event = on_event
        self._command_timeout = command_timeout
        self._clock = clock or global_clock()
        self._random = random
        self._pending = Pending()
        blocks.when_lost(self._lost)
        blocks.deliver_to(self._received)

    # -- the connection

    @property
    def version(self) -> int:
        """The protocol's version in this session."""
        return self.session.version

    @property
    def service_id(self) -> bytes | None:
        """The relay's id for the service, None for a client that is none."""
        service = self.session.service
        return None if service is None else service.service_id

    @property
    def connected(self) -> bool:
        """Whether commands can be sent."""
        return self.session.blocks.connected

    async def lost(self) -> None:
        """Waits until the connection is closed, by whomever."""
        await self.session.blocks.lost()

    async def close(self) -> None:
        """Closes the connection and waits until that is done."""
        self.session.blocks.close()
        await self.lost()

    def abort(self) -> None:
        """Closes the connection at once; what was sent may not arrive."""
        self.session.blocks.abort()

    def _lost(self, error: DisconnectedError) -> None:
        self._pending.fail_all(error)
        self.events.close()

    # -- receiving

    def _received(self, block: bytes) -> None:
        try:
            content = self.session.open(block)
        except (BoxError, ParseError):
            # Both sides' chains may disagree from here on.
            self.abort()
            return
        for received in self.session.framing.read_messages(content):
            if received.corr_id and self._pending.settle(received):
                continue
            if not received.corr_id:
                self._event(received)

    def _event(self, event: Received) -> None:
        if self._on_event is None:
            self.events.put(event)
            return
        try:
            self._on_event(event)
        except Exception:  # noqa: BLE001  (another's fault must not end the connection)
            _log.failure("the receiver of events failed")

    # -- sending

    async def request(
        self,
        command: Command,
        entity_id: bytes = b"",
        key: PrivateKey | None = None,
        *,
        corr_id: bytes | None = None,
        service_signed: bool | None = None,
        timeout: float | None = None,
    ) -> Message:
        """The answer to any `command`, of the entity given and authorised by `key`."""
        request = Request(command, entity_id, key, corr_id, service_signed)
        (answer,) = await self.send_many([request], timeout=timeout)
        if isinstance(answer, ClientError):
            raise answer
        return answer

    async def send_many(
        self, requests: Sequence[Request], *, timeout: float | None = None
    ) -> list[Answer]:
        """Sends `requests` in as few blocks as hold them; their answers in the same order.

        Each answer is a message, or the exception that a single command would raise.
        """
        sent: list[Sent | TooLargeError] = []
        transmissions = []
        for request in requests:
            corr_id = request.corr_id
            if corr_id is None:
                corr_id = self._random(_CORR_ID_SIZE)
            transmissions.append(self._transmission(request, corr_id))
            sent.append(Sent(corr_id, request.entity_id))
        contents = []
        for item in pack(transmissions):
            if isinstance(item, TooLarge):
                sent[item.position] = TooLargeError("the command fits into no block")
            else:
                contents.append(item)
        return await self._exchange(sent, contents, timeout)

    def _transmission(self, request: Request, corr_id: bytes) -> bytes:
        command = request.command
        signed = request.service_signed
        if signed is None:
            signed = command.service_signed and self.session.service is not None
        return self.session.signer.transmission(
            corr_id,
            request.entity_id,
            command.encode(self.version),
            request.key,
            service_signed=signed,
        )

    async def _exchange(
        self,
        sent: Sequence[Sent | TooLargeError],
        contents: Sequence[bytes],
        timeout: float | None,
    ) -> list[Answer]:
        ids = [item.corr_id for item in sent if isinstance(item, Sent)]
        answered: Deferred[list[Answer]] = Deferred(lambda _: self._pending.forget(ids))
        self._pending.add(sent, answered.callback)
        if not self.connected:
            self._pending.fail_all(self.session.blocks.error())
        for content in contents:
            self.session.send(content)
        if timeout is None:
            timeout = self._command_timeout
        if timeout is None or answered.called:
            return await answered
        timer = self._clock.callLater(timeout, self._time_out, ids, timeout)
        try:
            return await answered
        finally:
            if timer.active():
                timer.cancel()

    def _time_out(self, corr_ids: Sequence[bytes], seconds: float) -> None:
        for corr_id in corr_ids:
            self._pending.fail(corr_id, TimedOutError(f"no answer within {seconds:g} seconds"))

    # -- of the recipient

    async def create_queue(
        self,
        recipient_key: PrivateKey,
        dh_key: PrivateKey,
        *,
        mode: QueueMode | None = QueueMode.MESSAGING,
        subscribe: bool = True,
        password: bytes | None = None,
        link: LinkData | None = None,
        link_id: bytes | None = None,
        notifier: NotifierRequest | None = None,
        timeout: float | None = None,
    ) -> CreatedQueue:
        """Creates a queue whose recipient's commands `recipient_key` authorises (NEW).

        `recipient_key` is of Ed25519, Ed448 or X25519, and `dh_key`, for the encryption of
        messages, of X25519. `mode` needs version 9, `link` 15, `notifier` 17; what a lower
        version cannot say is left out. With `link`, a contact queue needs a `link_id`,
        by convention of 24 bytes; that of a messaging queue comes from the relay.
        """
        corr_id = self._random(_CORR_ID_SIZE)
        request = None
        if mode is not None:
            link_request = None
            if link is not None:
                link_request = LinkRequest(sender_id_for(corr_id), link, link_id)
            request = QueueRequest(mode, link_request)
        command = commands.New(
            recipient_key.public, dh_key.public, password, subscribe, request, notifier
        )
        answer = await self.request(command, b"", recipient_key, corr_id=corr_id, timeout=timeout)
        return CreatedQueue.from_ids(of_kind(Ids, answer, command), dh_key)

    async def subscribe(
        self, recipient_id: bytes, key: PrivateKey, *, timeout: float | None = None
    ) -> None:
        """Subscribes to a queue (SUB); its first message, if any, comes as an event."""
        command = commands.Sub()
        answer = await self.request(command, recipient_id, key, timeout=timeout)
        if isinstance(answer, Msg):
            # Some relays of old answered with the message itself (smp-wire.md §11).
            self._event(Received(b"", recipient_id, answer))
            return
        _subscribed(answer, command)

    async def get(
        self, recipient_id: bytes, key: PrivateKey, *, timeout: float | None = None
    ) -> Msg | None:
        """The first message of a queue not subscribed to (GET), None when there is none."""
        return _message(*await self._ask(commands.Get(), recipient_id, key, timeout))

    async def ack(
        self, recipient_id: bytes, key: PrivateKey, msg_id: bytes, *, timeout: float | None = None
    ) -> Msg | None:
        """Confirms a message (ACK), which the relay deletes; the next one, if there is one.

        A queue that is read with `get` has no next message here.
        """
        return _message(*await self._ask(commands.Ack(msg_id), recipient_id, key, timeout))

    async def secure(
        self,
        recipient_id: bytes,
        key: PrivateKey,
        sender_key: PublicKey,
        *,
        timeout: float | None = None,
    ) -> None:
        """Lets only the holder of `sender_key` send to the queue (KEY)."""
        ok(*await self._ask(commands.Key(sender_key), recipient_id, key, timeout))

    async def set_recipient_keys(
        self,
        recipient_id: bytes,
        key: PrivateKey,
        keys: Sequence[PublicKey],
        *,
        timeout: float | None = None,
    ) -> None:
        """Replaces the keys of a contact queue's recipients (RKEY), 1 to 255 of them."""
        ok(*await self._ask(commands.Rkey(list(keys)), recipient_id, key, timeout))

    async def set_link(
        self,
        recipient_id: bytes,
        key: PrivateKey,
        link_id: bytes,
        data: LinkData,
        *,
        timeout: float | None = None,
    ) -> None:
        """Sets the data behind the queue's link, or changes its user part (LSET)."""
        ok(*await self._ask(commands.Lset(link_id, data), recipient_id, key, timeout))

    async def delete_link(
        self, recipient_id: bytes, key: PrivateKey, *, timeout: float | None = None
    ) -> None:
        """Removes the queue's link and its data (LDEL)."""
        ok(*await self._ask(commands.Ldel(), recipient_id, key, timeout))

    async def add_notifier(
        self,
        recipient_id: bytes,
        key: PrivateKey,
        notifier_key: PublicKey,
        dh_key: PublicKey,
        *,
        timeout: float | None = None,
    ) -> Nid:
        """Gives the queue a notifier (NKEY), in place of one that it had.

        `dh_key`, of X25519, is ours for the encryption of notifications.
        """
        command = commands.Nkey(notifier_key, dh_key)
        return of_kind(Nid, *await self._ask(command, recipient_id, key, timeout))

    async def delete_notifier(
        self, recipient_id: bytes, key: PrivateKey, *, timeout: float | None = None
    ) -> None:
        """Takes the queue's notifier away (NDEL)."""
        ok(*await self._ask(commands.Ndel(), recipient_id, key, timeout))

    async def suspend(
        self, recipient_id: bytes, key: PrivateKey, *, timeout: float | None = None
    ) -> None:
        """Lets nobody send to the queue any more (OFF)."""
        ok(*await self._ask(commands.Off(), recipient_id, key, timeout))

    async def delete(
        self, recipient_id: bytes, key: PrivateKey, *, timeout: float | None = None
    ) -> None:
        """Deletes the queue and its messages (DEL)."""
        ok(*await self._ask(commands.Del(), recipient_id, key, timeout))

    async def queue_info(
        self, recipient_id: bytes, key: PrivateKey, *, timeout: float | None = None
    ) -> dict[str, Any]:
        """The state of the queue (QUE), with the members of smp-wire.md §14.4."""
        answer, command = await self._ask(commands.Que(), recipient_id, key, timeout)
        return of_kind(Info, answer, command).state

    # -- of notifiers and services, and of anybody

    async def subscribe_notifications(
        self, notifier_id: bytes, key: PrivateKey, *, timeout: float | None = None
    ) -> None:
        """Subscribes to the notifications of a queue (NSUB); they come as events."""
        _subscribed(*await self._ask(commands.Nsub(), notifier_id, key, timeout))

    async def subscribe_service(self, *, timeout: float | None = None) -> int:
        """Subscribes the service to all its queues (SUBS); how many there are."""
        return await self._subscribe_all(commands.Subs(), timeout)

    async def subscribe_service_notifications(self, *, timeout: float | None = None) -> int:
        """Subscribes the service to all its notifiers (NSUBS); how many there are."""
        return await self._subscribe_all(commands.Nsubs(), timeout)

    async def _subscribe_all(self, command: Command, timeout: float | None) -> int:
        service = self.session.service
        if service is None:
            raise ValueError("the session has no service")
        answer, command = await self._ask(command, service.service_id, service.key, timeout)
        return of_kind(Soks, answer, command).count

    async def ping(self, *, timeout: float | None = None) -> None:
        """Sees whether the relay answers (PING)."""
        of_kind(Pong, *await self._ask(commands.Ping(), b"", None, timeout))


def _subscribed(answer: Message, command: Command) -> None:
    # Up to version 15 the answer is OK.
    if not isinstance(answer, Ok):
        of_kind(Sok, answer, command)


def _message(answer: Message, command: Command) -> Msg | None:
    return None if isinstance(answer, Ok) else of_kind(Msg, answer, command)
