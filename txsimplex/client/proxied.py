"""A relay that is reached by way of a proxy (smp-proxy.md §1.3, §2).

    relay = await through(client, location)
    await relay.send(sender_id, b"hello")

The proxy learns which relay it is, and nothing of the command; the relay learns
that it came from the proxy.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from typing import Final

from txsimplex.addresses import RelayLocation, ServerAddress
from txsimplex.boxes import BoxError, BoxKey
from txsimplex.certificates import CertificateError, check_server_chain
from txsimplex.client.errors import (
    HandshakeError,
    IdentityError,
    ProxyError,
    RelayError,
    TooLargeError,
    UnexpectedAnswerError,
)
from txsimplex.client.sending import SenderCommands, of_kind
from txsimplex.client.session import utc_now
from txsimplex.client.signing import Signer
from txsimplex.client.smp import SMPClient
from txsimplex.encoding import LargeMessageError, ParseError
from txsimplex.keys import Algorithm, PrivateKey, PublicKey, Random
from txsimplex.smp import commands
from txsimplex.smp.commands import Command
from txsimplex.smp.forwarding import open_answer, seal_forwarded
from txsimplex.smp.handshake import BAD_IDENTITY, BAD_VERSION, shown_key
from txsimplex.smp.hellos import ServerKey
from txsimplex.smp.messages import Err, Message, Pkey, Pres
from txsimplex.smp.transmissions import Framing, frame
from txsimplex.smp.versions import SMP_RANGE, VersionRange

PROXY_VERSION: Final = 8
"""The first version of a proxy, and of what it forwards."""
_CORR_ID_SIZE: Final = 24


class ProxiedRelay(SenderCommands):
    """A session of a proxy with a relay, for the commands of senders.

    It ends with the proxy's connection to the relay: commands raise `ProxyError` with
    ``PROXY NO_SESSION`` then, and `through` has to be called again.
    """

    def __init__(
        self,
        proxy: SMPClient,
        session_id: bytes,
        version: int,
        relay_key: PublicKey,
        random: Random = os.urandom,
    ) -> None:
        self.session_id = session_id
        self.version = version
        self._proxy = proxy
        self._relay_key = relay_key
        self._random = random
        self._framing = Framing(version, session_id)
        self._signer = Signer(self._framing, relay_key)

    @property
    def connected(self) -> bool:
        """Whether the proxy is connected; whether it has lost the relay, it alone knows."""
        return self._proxy.connected

    async def request(
        self,
        command: Command,
        entity_id: bytes = b"",
        key: PrivateKey | None = None,
        *,
        timeout: float | None = None,
    ) -> Message:
        """The relay's answer to a command.

        Raises `ProxyError` when it did not get so far, and what `SMPClient.request` raises.
        """
        corr_id = self._random(_CORR_ID_SIZE)
        encoded = command.encode(self.version)
        sent = self._signer.transmission(corr_id, entity_id, encoded, key)
        own_key = PrivateKey.generate(Algorithm.X25519, self._random)
        box = BoxKey(own_key.exchange(self._relay_key))
        try:
            sealed = seal_forwarded(box, corr_id, frame([sent]))
        except LargeMessageError:
            raise TooLargeError("the command fits into no block") from None
        forward = commands.Pfwd(self.version, own_key.public, sealed)
        try:
            answer = await self._proxy.request(
                forward, self.session_id, corr_id=corr_id, timeout=timeout
            )
        except RelayError as error:
            raise ProxyError(error.error) from None
        return self._opened(box, corr_id, of_kind(Pres, answer, forward))

    def _opened(self, box: BoxKey, corr_id: bytes, answer: Pres) -> Message:
        try:
            content = open_answer(box, corr_id, answer.response)
        except (BoxError, ParseError):
            raise UnexpectedAnswerError("an answer that is not the relay's") from None
        received = self._framing.read_messages(content)
        if len(received) != 1:
            raise UnexpectedAnswerError("several answers in one")
        message = received[0].message
        if isinstance(message, Err):
            raise RelayError(message.error)
        if not isinstance(message, Message):
            raise UnexpectedAnswerError(f"an answer that cannot be read: {message}")
        return message


async def through(
    proxy: SMPClient,
    location: RelayLocation | ServerAddress,
    *,
    password: bytes | None = None,
    versions: VersionRange = SMP_RANGE,
    timeout: float | None = None,
    random: Random = os.urandom,
    now: Callable[[], datetime] = utc_now,
) -> ProxiedRelay:
    """A relay through a proxy; `password` is the proxy's.

    What the proxy shows of the relay is checked against the relay's address, so the proxy
    cannot be the relay itself. Raises `ProxyError`, `IdentityError`, and `HandshakeError`
    when proxy, relay and we have no version in common.
    """
    where = location.location if isinstance(location, ServerAddress) else location
    if proxy.version < PROXY_VERSION:
        raise HandshakeError(BAD_VERSION)
    command = commands.Prxy(where, password)
    try:
        answer = await proxy.request(command, timeout=timeout)
    except RelayError as error:
        raise ProxyError(error.error) from None
    shown = of_kind(Pkey, answer, command)
    both = versions.intersection(shown.versions)
    if both is None or both.maximum < PROXY_VERSION:
        raise HandshakeError(BAD_VERSION)
    try:
        check_server_chain(shown.chain, where.key_hash, now())
    except CertificateError as error:
        raise IdentityError(str(error)) from None
    key = shown_key(ServerKey(shown.chain, shown.signed_key), shown.chain[0])
    if key is None:
        raise IdentityError(str(BAD_IDENTITY))
    return ProxiedRelay(proxy, shown.session_id, both.maximum, key, random)
