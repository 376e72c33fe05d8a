"""The client of ``bench.restart``: a process that finds a relay's old queues again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from bench.workers import Handler, obey, sleep
from txsimplex import fast_reactor
from txsimplex.addresses import ServerAddress
from txsimplex.boxes import BoxError, BoxKey
from txsimplex.client.errors import DisconnectedError
from txsimplex.client.smp import Request, SMPClient, connect
from txsimplex.encoding import ParseError
from txsimplex.keys import Algorithm, PrivateKey
from txsimplex.smp import commands
from txsimplex.smp.bodies import MessageBody, open_body
from txsimplex.smp.messages import Msg, Ok, Sok
from txsimplex.smp.transmissions import Received

fast_reactor.install()

from twisted.internet import reactor as _reactor  # noqa: E402
from twisted.internet.endpoints import TCP4ClientEndpoint  # noqa: E402

reactor: Any = _reactor

_STEP = 0.01
_AT_ONCE = 50
"""Queues in one block of SUB; their messages take a block each."""
_MESSAGES_TIME = 20.0


class RestartWorker:
    """One client, whose queues have one message each."""

    def __init__(self) -> None:
        self._client: SMPClient | None = None
        self._came: dict[bytes, Msg] = {}

    async def first_answer(self, address: str, host: str, port: int, queue: str, key: str) -> float:
        """Connects as soon as it can, and subscribes to a queue; the time of the answer."""
        self._came = {}
        client = self._client = await self._connected(ServerAddress.parse(address), host, port)
        await client.subscribe(bytes.fromhex(queue), _key(key))
        return time.monotonic()

    async def _connected(self, server: ServerAddress, host: str, port: int) -> SMPClient:
        endpoint = TCP4ClientEndpoint(reactor, host, port)
        while True:
            try:
                return await connect(endpoint, server, clock=reactor, on_event=self._event)
            except DisconnectedError:
                await sleep(_STEP)

    def _event(self, received: Received) -> None:
        if isinstance(received.message, Msg):
            self._came[received.entity_id] = received.message

    async def subscribe(self, queues: Sequence[Sequence[str]], key: str) -> list[str]:
        """Subscribes to `queues` (recipient id, secret, body) and compares what comes; faults."""
        assert self._client is not None
        faults = []
        found = [tuple(map(bytes.fromhex, queue)) for queue in queues]
        for start in range(0, len(found), _AT_ONCE):
            requests = [
                Request(commands.Sub(), recipient_id, _key(key))
                for recipient_id, _, _ in found[start : start + _AT_ONCE]
            ]
            answers = await self._client.send_many(requests)
            wrong = [answer for answer in answers if not isinstance(answer, Ok | Sok)]
            faults += [f"SUB was answered by {answer}" for answer in wrong]
        deadline = time.monotonic() + _MESSAGES_TIME
        while len(self._came) < len(found) and time.monotonic() < deadline:
            await sleep(_STEP)
        for recipient_id, secret, body in found:
            if not _is_as_sent(self._came.get(recipient_id), secret, body):
                faults.append("a message did not come as it was sent")
        return faults

    async def acknowledge(self, key: str) -> list[str]:
        """Acknowledges all that has come; faults."""
        assert self._client is not None
        faults = []
        for recipient_id, message in self._came.items():
            if await self._client.ack(recipient_id, _key(key), message.msg_id) is not None:
                faults.append("a message came that was not sent")
        return faults

    async def lost(self) -> None:
        """Waits until the relay is gone."""
        assert self._client is not None
        await self._client.lost()


def _is_as_sent(message: Msg | None, secret: bytes, body: bytes) -> bool:
    if message is None:
        return False
    try:
        opened = open_body(BoxKey(secret), message.msg_id, message.body)
    except (BoxError, ParseError):
        return False
    return isinstance(opened, MessageBody) and opened.body == body


def _key(text: str) -> PrivateKey:
    return PrivateKey(Algorithm.ED25519, bytes.fromhex(text))


def main() -> None:
    """Obeys until stdin ends."""
    worker = RestartWorker()
    handlers: dict[str, Handler] = {
        "first_answer": worker.first_answer,
        "subscribe": worker.subscribe,
        "acknowledge": worker.acknowledge,
        "lost": worker.lost,
    }
    obey(handlers)


if __name__ == "__main__":
    main()
