"""The commands of senders, to a relay directly or by way of a proxy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TypeVar

from txsimplex.client.errors import UnexpectedAnswerError
from txsimplex.keys import PrivateKey
from txsimplex.smp import commands
from txsimplex.smp.commands import Command
from txsimplex.smp.messages import Lnk, Message, Ok

Kind = TypeVar("Kind", bound=Message)


class SenderCommands(ABC):
    """What a sender may ask a relay; `request` sends it."""

    @abstractmethod
    async def request(
        self,
        command: Command,
        entity_id: bytes = b"",
        key: PrivateKey | None = None,
        *,
        timeout: float | None = None,
    ) -> Message:
        """The answer to a command, of the entity given and authorised by `key`."""

    async def _ask(
        self, command: Command, entity_id: bytes, key: PrivateKey | None, timeout: float | None
    ) -> tuple[Message, Command]:
        return await self.request(command, entity_id, key, timeout=timeout), command

    async def sender_secure(
        self, sender_id: bytes, key: PrivateKey, *, timeout: float | None = None
    ) -> None:
        """Lets only the holder of `key` send to the queue (SKEY)."""
        ok(*await self._ask(commands.Skey(key.public), sender_id, key, timeout))

    async def send(
        self,
        sender_id: bytes,
        body: bytes,
        *,
        key: PrivateKey | None = None,
        notify: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Sends a message (SEND); `key` if the queue is secured, and none if it is not.

        The body has at most `max_message_length` bytes (smp-wire.md §14.1).
        """
        ok(*await self._ask(commands.Send(notify, body), sender_id, key, timeout))

    async def secure_link(
        self, link_id: bytes, key: PrivateKey, *, timeout: float | None = None
    ) -> Lnk:
        """Secures the queue behind a one-time link with `key`; the link's data (LKEY)."""
        command = commands.Lkey(key.public)
        return of_kind(Lnk, *await self._ask(command, link_id, key, timeout))

    async def get_link(self, link_id: bytes, *, timeout: float | None = None) -> Lnk:
        """The data behind a contact link (LGET)."""
        return of_kind(Lnk, *await self._ask(commands.Lget(), link_id, None, timeout))


def of_kind(kind: type[Kind], answer: Message, command: Command) -> Kind:
    """The answer to a command, which has to be of that kind."""
    if not isinstance(answer, kind):
        raise UnexpectedAnswerError(
            f"{answer.tag.decode('ascii')} in answer to {command.tag.decode('ascii')}"
        )
    return answer


def ok(answer: Message, command: Command) -> None:
    """The same, where there is nothing to be told."""
    of_kind(Ok, answer, command)
