"""What can go wrong for a client, one exception each, all of them `ClientError`."""

from __future__ import annotations

from txsimplex.smp.errors import Error


class ClientError(Exception):
    """Something that a client of a relay could not do."""


class RelayError(ClientError):
    """The relay answered ``ERR``; `error` is what it said."""

    def __init__(self, error: Error) -> None:
        super().__init__(str(error))
        self.error = error


class ProxyError(RelayError):
    """The proxy answered ``ERR``, for itself or for the relay that it could not reach."""


class UnexpectedAnswerError(ClientError):
    """The relay's answer is not of the form that the command has, or cannot be read."""


class TimedOutError(ClientError):
    """The time given was over before the relay was connected or had answered."""


class DisconnectedError(ClientError):
    """The connection is closed, so that a command was not sent or will have no answer.

    Whether the relay executed the command is then not known.
    """


class IdentityError(ClientError):
    """The chain presented does not prove the identity in the address (smp-wire.md §4.2)."""


class HandshakeError(ClientError):
    """The handshake of SMP failed; `error` says at what (smp-wire.md §12.4)."""

    def __init__(self, error: Error) -> None:
        super().__init__(str(error))
        self.error = error


class TooLargeError(ClientError):
    """A command does not fit into a block and was not sent."""


class NoWayError(ClientError):
    """None of the relay's hosts may be connected to from here; nothing was sent."""
