"""The tor that the relay runs itself: one, for its onion service, its proxy, or both."""

from __future__ import annotations

import shutil
from typing import Any

from smpd.config import Settings
from smpd.credentials import CredentialsError
from smpd.endpoints import OWN_TOR
from torcfg.tor_process import TorProcess


def own_tor(settings: Settings, reactor: Any) -> TorProcess | None:
    """The tor that the configuration wants the relay to run, None if it wants none.

    Raises `CredentialsError` where it cannot be run.
    """
    tor, socks = settings.tor, settings.proxy.own_tor
    service = tor.onion and tor.control == OWN_TOR
    if not (service or socks):
        return None
    if shutil.which("tor") is None:
        key = "[tor] control" if service else "[proxy] socks_proxy"
        raise CredentialsError(f"{key} = {OWN_TOR}: tor is not installed (Debian: tor)")
    try:
        return TorProcess(
            reactor,
            tor.directory,
            socks=socks,
            single_hop=service and tor.single_hop,
            include=tor.include,
        )
    except ValueError as error:
        raise CredentialsError(f"the relay cannot run its own tor: {error}") from None
