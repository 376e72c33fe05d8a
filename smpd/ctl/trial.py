"""Goes through what clients do with a relay, step by step, for `smpctl check`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import pairwise
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import react
from zope.interface import implementer

from smpd.ctl.errors import CommandError
from txsimplex.addresses import ServerAddress
from txsimplex.boxes import BoxError
from txsimplex.client.deadlines import within
from txsimplex.client.errors import ClientError, IdentityError, RelayError
from txsimplex.client.network import Network, for_each_connection
from txsimplex.client.queues import CreatedQueue
from txsimplex.client.session import utc_now
from txsimplex.client.smp import SMPClient, connect
from txsimplex.encoding import ParseError
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp.bodies import MessageBody
from txsimplex.smp.messages import Msg

_CONNECTING = ("TCP connection", "TLS", "handshake")
_MESSAGE_SIZE = 1000

Report = Callable[[str, float, str], object]
"""Takes the name of a step that went well, its seconds, and what there is to say about it."""


def run_trial(address: ServerAddress, network: Network, timeout: float, report: Report) -> None:
    """Runs a `Trial` in the reactor, which it starts and ends. Raises as that does."""
    ended: list[Exception | None] = []

    async def main(reactor: Any) -> None:
        try:
            endpoint = network.endpoint(reactor, address.location, for_each_connection(os.urandom))
            await Trial(address, endpoint, reactor, timeout, report).run()
        except Exception as error:  # noqa: BLE001 - it is raised again when the reactor has ended
            ended.append(error)
        else:
            ended.append(None)

    with suppress(SystemExit):
        react(lambda reactor: Deferred.fromCoroutine(main(reactor)))
    if not ended:
        raise CommandError("interrupted")
    if ended[0] is not None:
        raise ended[0]


@implementer(IStreamClientEndpoint)
class _WatchedEndpoint:
    """An endpoint that tells when its connection is there."""

    def __init__(self, endpoint: IStreamClientEndpoint, connected: Callable[[], object]) -> None:
        self._endpoint = endpoint
        self._connected = connected

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """As the endpoint itself does."""

        def tell(protocol: IProtocol) -> IProtocol:
            self._connected()
            return protocol

        connecting: Deferred[IProtocol] = self._endpoint.connect(protocolFactory)
        return connecting.addCallback(tell)


class Trial:
    """One run through all steps, each of which may take `timeout` seconds.

    `run` raises `CommandError`, which names the step that failed.
    """

    def __init__(
        self,
        address: ServerAddress,
        endpoint: IStreamClientEndpoint,
        clock: Any,
        timeout: float,
        report: Report,
    ) -> None:
        self._address = address
        self._endpoint = endpoint
        self._clock = clock
        self._timeout = timeout
        self._report = report
        self._recipient_key = PrivateKey.generate(Algorithm.ED25519, os.urandom)

    async def run(self) -> None:
        """Connects, goes through the life of a queue, and closes the connection."""
        client = await self._connect()
        try:
            queue = await self._create(client)
            try:
                await self._exchange(client, queue)
            except CommandError:
                # The relay is left as it was, as far as it lets us.
                with suppress(ClientError):
                    await client.delete(queue.recipient_id, self._recipient_key)
                raise
            with self._step("delete queue"):
                await client.delete(queue.recipient_id, self._recipient_key)
        finally:
            client.abort()

    async def _connect(self) -> SMPClient:
        marks = [self._clock.seconds()]

        def mark() -> None:
            marks.append(self._clock.seconds())

        def now() -> datetime:
            # Asked for when TLS has brought the chain, which is then judged at this time.
            mark()
            return utc_now()

        try:
            client = await connect(
                _WatchedEndpoint(self._endpoint, mark),
                self._address,
                timeout=self._timeout,
                command_timeout=self._timeout,
                clock=self._clock,
                now=now,
            )
        except ClientError as error:
            self._report_connecting(marks, "")
            step = _CONNECTING[len(marks) - 1]
            if isinstance(error, IdentityError):
                step = "fingerprint"
            # What the system or the name server said is in the cause.
            raise CommandError(f"{step}: {error.__cause__ or error}".rstrip(".")) from None
        mark()
        self._report_connecting(marks, f"fingerprint matches, {_agreed(client)}")
        return client

    def _report_connecting(self, marks: list[float], note: str) -> None:
        """Reports what lies between the marks; `note` is for the last of these steps."""
        notes = ("", "", note)
        for name, (begin, end), said in zip(_CONNECTING, pairwise(marks), notes, strict=False):
            self._report(name, end - begin, said)

    async def _create(self, client: SMPClient) -> CreatedQueue:
        password = self._address.password
        dh_key = PrivateKey.generate(Algorithm.X25519, os.urandom)
        with self._step("create queue", {"AUTH": "wrong password, or no new queues allowed"}):
            return await client.create_queue(
                self._recipient_key,
                dh_key,
                password=None if password is None else password.encode(),
            )

    async def _exchange(self, client: SMPClient, queue: CreatedQueue) -> None:
        recipient, key = queue.recipient_id, self._recipient_key
        # As the apps do, where the relay's version has authenticators.
        algorithm = Algorithm.ED25519
        if client.session.signer.server_key is not None:
            algorithm = Algorithm.X25519
        sender_key = PrivateKey.generate(algorithm, os.urandom)
        body = os.urandom(_MESSAGE_SIZE)
        with self._step("secure queue"):
            await client.secure(recipient, key, sender_key.public)
        with self._step("send"):
            await client.send(queue.sender_id, body, key=sender_key)
        with self._step("receive"):
            message = await self._next_message(client, recipient)
            try:
                received = queue.open(message)
            except (BoxError, ParseError):
                raise CommandError("receive: the message cannot be decrypted") from None
            if not isinstance(received, MessageBody) or received.body != body:
                raise CommandError("receive: this is not the message that was sent")
        with self._step("acknowledge"):
            if await client.ack(recipient, key, message.msg_id) is not None:
                raise CommandError("acknowledge: the queue has a message that was not sent")

    async def _next_message(self, client: SMPClient, recipient_id: bytes) -> Msg:
        while True:
            event = await within(
                self._timeout, Deferred.fromCoroutine(anext(client.events)), self._clock
            )
            if isinstance(event.message, Msg) and event.entity_id == recipient_id:
                return event.message

    @contextmanager
    def _step(self, name: str, explanations: Mapping[str, str] = {}) -> Iterator[None]:
        begin = self._clock.seconds()
        try:
            yield
        except RelayError as error:
            explanation = explanations.get(str(error))
            meaning = f" ({explanation})" if explanation else ""
            raise CommandError(f"{name}: the relay answers {error}{meaning}") from None
        except ClientError as error:
            raise CommandError(f"{name}: {error}") from None
        except StopAsyncIteration:
            raise CommandError(f"{name}: the connection is lost") from None
        self._report(name, self._clock.seconds() - begin, "")


def _agreed(client: SMPClient) -> str:
    session = client.session
    blocks = "encrypted blocks" if session.encrypted else "plain blocks"
    return f"version {session.version}, {blocks}"
