"""A relay in the process of the tests, which do with it what its operator can do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred

from smpd.config import load
from smpd.tap import RelayService
from tests.conformance.relays import ConfiguredRelay, Credentials, Settings


class OperatedRelay(ConfiguredRelay):
    """A relay that listens as others do; `service` is what `twistd smpd` would run."""

    def __init__(self, directory: Path, settings: Settings | None = None) -> None:
        super().__init__(directory, Credentials.make(), settings)
        self.service = RelayService(load(self.write_configuration()))

    def start(self) -> None:
        """Listens from now on, on any port that is free."""
        self.service.privilegedStartService()
        self.service.startService()
        (listening,) = self.service.listener.ports
        host: Any = listening.getHost()
        self.port = host.port

    def end(self) -> Deferred[Any]:
        """Stops to listen and closes all connections."""
        return maybeDeferred(self.service.stopService)
