"""The relay as an onion service: from the configuration to `torcfg`, and to the address."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twisted.application.service import IService
from twisted.internet.endpoints import clientFromString

from smpd.config import OWN_TOR, Settings
from smpd.credentials import PRIVATE, CredentialsError, create
from smpd.endpoints import onion_target
from torcfg.client_files import ClientFiles
from torcfg.onion_keys import KeyFileError, OnionKey
from torcfg.onion_services import OnionService, ProofOfWork
from txsimplex.addresses import Host


def read_onion_key(settings: Settings) -> OnionKey:
    """The key of the onion service. Raises `CredentialsError`."""
    path = settings.tor.onion_key
    key = read_key_file(path)
    if path.stat().st_mode & 0o077:
        raise CredentialsError(f"{path} may be read by others: make its mode 600")
    return key


def read_key_file(path: Path) -> OnionKey:
    """The key in a file of tor. Raises `CredentialsError`."""
    try:
        return OnionKey.decode(path.read_bytes())
    except OSError as error:
        raise CredentialsError(f"{path} cannot be read: {error.strerror}") from None
    except KeyFileError as error:
        raise CredentialsError(f"{path} cannot be used: {error}") from None


def onion_key(settings: Settings) -> OnionKey:
    """The key of the onion service, made if there is none yet. Raises `CredentialsError`."""
    path = settings.tor.onion_key
    if not path.exists():
        try:
            create(path, OnionKey.generate(os.urandom).encode(), PRIVATE)
        except FileExistsError:
            return read_onion_key(settings)
        except OSError as error:
            raise CredentialsError(f"{path} cannot be made: {error.strerror}") from None
    return read_onion_key(settings)


def onion_host(settings: Settings) -> Host | None:
    """The host of the onion service; None when the relay is none. Raises `CredentialsError`."""
    return Host.parse(read_onion_key(settings).address) if settings.tor.onion else None


def onion_services(settings: Settings, reactor: Any) -> Iterator[IService]:
    """What publishes the relay's onion service, if it is one. Raises `CredentialsError`."""
    tor = settings.tor
    if not tor.onion:
        return
    # Relays without one need not pay for txtorcon.
    from torcfg.publishing import OnionPublisher
    from torcfg.tor_process import TorProcess

    target = onion_target(settings.server.listen)
    assert target is not None
    service = OnionService(
        tuple((port, target) for port in tor.onion_ports or (settings.server.port,)),
        streams=tor.most_streams,
        proof_of_work=ProofOfWork() if tor.proof_of_work else None,
        single_hop=tor.single_hop,
    )
    if tor.control == OWN_TOR:
        if shutil.which("tor") is None:
            raise CredentialsError("[tor] control = own: tor is not installed (Debian: tor)")
        try:
            process = TorProcess(
                reactor, tor.directory, single_hop=tor.single_hop, include=tor.include
            )
        except ValueError as error:
            raise CredentialsError(f"the relay cannot run its own tor: {error}") from None
        yield process
        control = process.control
    else:
        control = clientFromString(reactor, tor.control)
    yield OnionPublisher(
        reactor,
        control,
        onion_key(settings),
        service,
        password=tor.password,
        clients=ClientFiles(tor.clients).keys,
    )
