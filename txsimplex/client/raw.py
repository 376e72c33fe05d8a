"""A client for what no proper client sends: tests of relays, and diagnosis.

Everything that `SMPClient` decides is decided by the caller here: correlation ids,
authenticators, how transmissions share blocks, and whether a block is one at all.
Nothing is correlated or answered in the background; blocks wait until asked for.
"""

from __future__ import annotations

from collections import deque

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from txsimplex.boxes import BoxError
from txsimplex.client.deadlines import within
from txsimplex.client.session import Session
from txsimplex.encoding import ParseError
from txsimplex.keys import PrivateKey
from txsimplex.smp.commands import Command
from txsimplex.smp.transmissions import Received, frame


class RawClient:
    """Drives a `Session`, as `open_session` made it, block by block.

    `timeout` is how many seconds every wait may take; after them `TimedOutError` is
    raised, which is also how to see that nothing was sent. When the connection is
    closed and all blocks are taken, it is `DisconnectedError`.
    """

    def __init__(self, session: Session, clock: IReactorTime, timeout: float = 10.0) -> None:
        self.session = session
        self._clock = clock
        self._timeout = timeout
        self._messages: deque[Received] = deque()

    # -- sending

    def send_block(self, block: bytes) -> None:
        """Sends exactly these 16,384 bytes, neither padded nor encrypted."""
        self.session.blocks.send(block)

    def send_content(self, content: bytes) -> None:
        """Sends `content`, at most 16,366 bytes, as one block of the session."""
        self.session.send(content)

    def send_transmissions(self, *transmissions: bytes) -> None:
        """Sends 1 to 255 transmissions in one block."""
        self.session.send(frame(transmissions))

    def transmission(
        self,
        command: Command | bytes,
        *,
        corr_id: bytes = b"",
        entity_id: bytes = b"",
        key: PrivateKey | None = None,
        authenticator: bytes | None = None,
        service_signature: bytes | None = None,
        service_signed: bool = False,
    ) -> bytes:
        """A transmission with the ids given, authorised by `key`, or with an authenticator.

        `authenticator` and `service_signature` are put in as they are; a service
        session signs in addition when `service_signed` is set.
        """
        session = self.session
        data = command if isinstance(command, bytes) else command.encode(session.version)
        if authenticator is None and service_signature is None:
            return session.signer.transmission(
                corr_id, entity_id, data, key, service_signed=service_signed
            )
        framing = session.framing
        authorized = framing.authorized(corr_id, entity_id, data)
        if authenticator is None:
            authenticator = (
                b"" if key is None else session.signer.authenticator(key, corr_id, authorized)
            )
        return framing.transmission(authorized, authenticator, service_signature)

    def send(
        self,
        command: Command | bytes,
        *,
        corr_id: bytes = b"",
        entity_id: bytes = b"",
        key: PrivateKey | None = None,
    ) -> None:
        """Sends one command in a block of its own."""
        self.send_transmissions(
            self.transmission(command, corr_id=corr_id, entity_id=entity_id, key=key)
        )

    # -- receiving

    async def next_block(self) -> bytes:
        """The next block as it came: 16,384 bytes, encrypted where the session is."""
        return await within(
            self._timeout, Deferred.fromCoroutine(self.session.blocks.next_block()), self._clock
        )

    async def next_content(self) -> bytes:
        """What is in the next block. Raises `BoxError` or `ParseError` if it does not open."""
        return self.session.open(await self.next_block())

    async def next_batch(self) -> list[Received]:
        """The messages of the next block, those that `next_message` left included."""
        if not self._messages:
            self._messages.extend(self.session.framing.read_messages(await self.next_content()))
        batch = list(self._messages)
        self._messages.clear()
        return batch

    async def next_message(self) -> Received:
        """The next message, whatever block it is in."""
        self._messages.extend(await self.next_batch())
        return self._messages.popleft()

    async def request(
        self,
        command: Command | bytes,
        *,
        corr_id: bytes = b"",
        entity_id: bytes = b"",
        key: PrivateKey | None = None,
    ) -> Received:
        """Sends one command and takes the next message, whether it is the answer or not."""
        self.send(command, corr_id=corr_id, entity_id=entity_id, key=key)
        return await self.next_message()

    async def lost(self) -> None:
        """Waits until the relay has closed the connection."""
        await within(self._timeout, Deferred.fromCoroutine(self.session.blocks.lost()), self._clock)

    def close(self) -> None:
        """Closes the connection."""
        self.session.blocks.close()


__all__ = ["BoxError", "ParseError", "RawClient"]
