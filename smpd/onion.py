"""The relay as an onion service: from the configuration to `torcfg`, and to the address."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec

from twisted.application.service import IService
from twisted.internet.endpoints import clientFromString
from twisted.internet.interfaces import IStreamClientEndpoint

from smpd.config import Settings
from smpd.credentials import CredentialsError
from smpd.endpoints import OWN_TOR, onion_endpoints, onion_target
from smpd.tor_settings import ServicePort
from torcfg.client_files import ClientFiles
from torcfg.key_files import kept_key, read_key, read_private_key
from torcfg.onion_keys import KeyFileError, OnionKey, is_onion_address
from torcfg.onion_services import OnionService, ProofOfWork
from torcfg.tor_process import TorProcess
from txsimplex.addresses import Host

P = ParamSpec("P")


def read_onion_key(path: Path) -> OnionKey:
    """The key of one of the relay's onion services. Raises `CredentialsError`."""
    return _usable(read_private_key, path)


def read_key_file(path: Path) -> OnionKey:
    """The key in a file of tor. Raises `CredentialsError`."""
    return _usable(read_key, path)


def onion_key(settings: Settings) -> OnionKey:
    """The key of the onion service, made if there is none yet. Raises `CredentialsError`."""
    return _usable(kept_key, settings.tor.onion_key, os.urandom)


def _usable(read: Callable[P, OnionKey], *arguments: P.args, **named: P.kwargs) -> OnionKey:
    try:
        return read(*arguments, **named)
    except KeyFileError as error:
        raise CredentialsError(str(error)) from None


def onion_host(settings: Settings) -> Host | None:
    """The host of the onion service of ``[tor]``, if there is one. Raises `CredentialsError`."""
    tor = settings.tor
    if not tor.onion:
        return None
    if tor.service_directory is not None:
        return Host.parse(name_of_service(tor.service_directory))
    return Host.parse(read_onion_key(tor.onion_key).address)


def name_of_service(directory: Path) -> str:
    """The name of an onion service of tor's own. Raises `CredentialsError`."""
    path = directory / "hostname"
    try:
        name = path.read_text("ascii", "replace").strip()
    except OSError as error:
        raise CredentialsError(
            f"{path} cannot be read: {error.strerror} (tor writes it when it starts, and lets its "
            "group read it with HiddenServiceDirGroupReadable 1 and DataDirectoryGroupReadable 1)"
        ) from None
    if not is_onion_address(name):
        raise CredentialsError(f"{path} has no name of an onion service of version 3 in it")
    return name


def onion_hosts(settings: Settings) -> list[Host]:
    """The hosts of all onion services, those of endpoints last. Raises `CredentialsError`."""
    own = onion_host(settings)
    keys = [read_onion_key(each.key) for each in onion_endpoints(settings.server.listen)]
    return [*([] if own is None else [own]), *(Host.parse(key.address) for key in keys)]


class KeyOfService(NamedTuple):
    """The key of one of the relay's onion services, in a file."""

    path: Path

    @property
    def address(self) -> str:
        """The name of the onion service. Raises `CredentialsError`."""
        return read_onion_key(self.path).address


def keys_of_services(settings: Settings) -> list[KeyOfService]:
    """Of each onion service but those that are tor's own."""
    tor = settings.tor
    own = [tor.onion_key] if tor.onion and tor.service_directory is None else []
    endpoints = [each.key for each in onion_endpoints(settings.server.listen)]
    return [KeyOfService(path) for path in own + endpoints]


class ClientsOfService(NamedTuple):
    """Who may reach one of the relay's onion services, the key of which is in a file `key`."""

    key: Path
    files: ClientFiles

    @property
    def address(self) -> str:
        """The name of the onion service. Raises `CredentialsError`."""
        return read_onion_key(self.key).address


def clients_of_services(settings: Settings) -> list[ClientsOfService]:
    """Of each onion service that clients can be named for: not of those that are tor's own."""
    tor = settings.tor
    endpoints = onion_endpoints(settings.server.listen)
    found = [(each.key, each.clients) for each in endpoints if each.clients is not None]
    if tor.onion and tor.service_directory is None:
        found.insert(0, (tor.onion_key, tor.clients))
    return [ClientsOfService(key, ClientFiles(directory)) for key, directory in found]


def onion_services(settings: Settings, reactor: Any, own: TorProcess | None) -> Iterator[IService]:
    """What publishes the relay's onion service, if it is one. Raises `CredentialsError`.

    `own` is the tor that the relay runs itself, which need not be that of the service.
    """
    tor = settings.tor
    if not tor.onion:
        return
    if tor.service_directory is not None:
        # All there is to do: the relay does not start without a name.
        onion_host(settings)
        return
    # Relays without one need not pay for txtorcon.
    from torcfg.publishing import OnionPublisher

    target = onion_target(settings.server.listen)
    assert target is not None
    ports = tor.onion_ports or (ServicePort(settings.server.port),)
    service = OnionService(
        tuple((port.number, port.target or target) for port in ports),
        streams=tor.most_streams,
        proof_of_work=ProofOfWork() if tor.proof_of_work else None,
        single_hop=tor.single_hop,
    )
    if tor.control == OWN_TOR:
        assert own is not None
        control: IStreamClientEndpoint = own.control
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
