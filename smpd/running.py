"""What can be asked of a relay that runs, by its control socket."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from smpd.control import Answer, Request


class Connected(Protocol):
    """Whoever has the relay's connections."""

    @property
    def connections(self) -> int:
        """How many there are."""

    @property
    def connections_by_unix(self) -> int:
        """How many of them came through Unix sockets, as those by Tor do."""


class OnionStatus(Protocol):
    """How far an onion service is, as `torcfg.publishing.Status`."""

    @property
    def state(self) -> Any:
        """An enumeration whose values are words."""

    @property
    def detail(self) -> str:
        """More about it."""


@runtime_checkable
class PublishedOnion(Protocol):
    """An onion service, as `torcfg.publishing.OnionPublisher`."""

    @property
    def address(self) -> str:
        """Its name."""

    @property
    def status(self) -> OnionStatus:
        """How far it is."""

    @property
    def status_since(self) -> float:
        """Since when, by the reactor's clock."""

    @property
    def clients(self) -> int | None:
        """How many clients may connect; None for everybody."""

    async def republish(self) -> None:
        """Has the clients that may connect now take effect."""


class RunningRelay:
    """Answers requests about one relay.

    `connected`, `onions` and `circuits` give what there is at that moment, `seconds` is the
    reactor's clock. `in_torrc` is the name of an onion service that is tor's own; nobody tells of
    circuits but tor for such a one.
    """

    def __init__(
        self,
        processes: int,
        connected: Connected,
        onions: Callable[[], Sequence[PublishedOnion]],
        seconds: Callable[[], float],
        *,
        in_torrc: str | None = None,
        circuits: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._processes = processes
        self._connected = connected
        self._onions = onions
        self._in_torrc = in_torrc
        self._circuits = circuits
        self._seconds = seconds
        self._begin = seconds()

    @property
    def requests(self) -> Mapping[str, Request]:
        """What can be asked for, by name."""
        return {"status": self.status, "onion clients": self.onion_clients}

    async def status(self) -> Answer:
        """How the relay is: numbers, and nothing about anybody. Times are seconds until now."""
        return {
            "running": self._since(self._begin),
            "processes": self._processes,
            "connections": self._connected.connections,
            "connections_by_unix": self._connected.connections_by_unix,
            "circuits": self._circuits(),
            "onion": [*map(self._onion, self._onions()), *self._of_tor()],
        }

    def _of_tor(self) -> list[dict[str, Any]]:
        """Of an onion service of tor's own, of which only tor knows more."""
        return [{"host": self._in_torrc, "state": "in torrc"}] if self._in_torrc else []

    async def onion_clients(self) -> Answer:
        """Lets those reach the relay's onion services that may now, and nobody else."""
        onions = self._onions()
        for each in onions:
            await each.republish()
        return {"onion": list(map(self._onion, onions))}

    def _onion(self, onion: PublishedOnion) -> dict[str, Any]:
        status = onion.status
        return {
            "host": onion.address,
            "state": status.state.value,
            "detail": status.detail,
            "since": self._since(onion.status_since),
            "clients": onion.clients,
        }

    def _since(self, begin: float) -> float:
        return round(self._seconds() - begin, 3)
