"""``twistd smpd``: where the relay is put together.

Everything else takes what it needs as arguments; the reactor, the clock and the
source of randomness are chosen here.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

from twisted.application.service import IService, MultiService, Service
from twisted.internet.defer import inlineCallbacks
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python import usage

from smpd.channel import Start
from smpd.config import DEFAULT_PATH, Settings, load
from smpd.control import ControlSocket
from smpd.conversation import Conversations
from smpd.core import Edges
from smpd.credentials import CredentialsError, read_identity
from smpd.delays import delivery_delay
from smpd.ini import ConfigurationError
from smpd.listener import Entrance, Listener, transport_limits
from smpd.onion import onion_host, onion_services
from smpd.open_files import most_connections
from smpd.own_tor import own_tor
from smpd.proxy import Proxy
from smpd.proxying import exposure, make_proxy
from smpd.relay import Relay
from smpd.rounds import Intervals, Rounds
from smpd.rules import Rules
from smpd.running import PublishedOnion, RunningRelay
from smpd.session import SameProcess, SessionFactory, SessionLimits
from smpd.stopping import Stopping
from smpd.store_opening import open_store
from smpd.stores.interface import Store, StoreUnusable
from smpd.stores.memory import MemoryStore
from smpd.stores.snapshot import SnapshotError, save
from torcfg.tor_process import TorProcess
from txsimplex import fast_reactor
from txsimplex.certificates import ServerIdentity
from txsimplex.smp.handshake import RelayIdentity
from txsimplex.smp.versions import VersionRange
from txsimplex.tls import server_context

if "twisted.internet.reactor" not in sys.modules:
    # Nobody has chosen a reactor by twistd's --reactor.
    fast_reactor.install()
elif "twisted.scripts.twistd" in sys.modules:
    fast_reactor.replace_default()


class Options(usage.Options):
    """Options of ``twistd smpd``."""

    synopsis = "[--config PATH]"
    longdesc = "Runs an SMP relay. smpctl(1) makes its configuration, smpd.ini(5) explains it."
    optParameters: ClassVar[list[list[str]]] = [
        ["config", "c", str(DEFAULT_PATH), "The configuration file."],
    ]

    settings: Settings

    def postOptions(self) -> None:
        """Reads the configuration; its faults go to stderr, a sentence each."""
        try:
            self.settings = load(Path(self["config"]))
        except ConfigurationError as error:
            raise SystemExit(str(error)) from None


def makeService(options: Options) -> IService:
    """The relay as a service for twistd."""
    try:
        return RelayService(options.settings)
    except CredentialsError as error:
        raise SystemExit(str(error)) from None


class RelayService(MultiService):
    """The relay with its listeners and rounds, from its settings.

    The store is opened when the service starts: then the process has gone into the
    background, where its threads must be, and has its user, whose the files must be. Raises
    `CredentialsError` when there are no usable certificates.
    """

    log = Logger()

    def __init__(self, settings: Settings, reactor: Any = None) -> None:
        super().__init__()
        if reactor is None:
            from twisted.internet import reactor
        self._settings = settings
        self._reactor = reactor
        self._identity = load_identity(settings)
        self._store: Store | None = None
        self._proxy: Proxy | None = None
        self._own_tor: TorProcess | None = None
        self._entrance = Entrance()
        self.listener = Listener(settings, self._entrance, reactor)
        self.listener.setServiceParent(self)

    def startService(self) -> None:
        """Opens the store and lets everything begin, or ends the process with the reason."""
        try:
            self._store = open_store(self._settings.store, self._reactor)
        except StoreUnusable as error:
            raise SystemExit(str(error)) from None
        try:
            self._use_tor()
        except CredentialsError as error:
            raise SystemExit(str(error)) from None
        self._assemble(self._store)
        super().startService()
        if self._own_tor is not None:
            self._own_tor.startService()

    def _use_tor(self) -> None:
        settings, reactor = self._settings, self._reactor
        if warning := exposure(settings):
            self.log.warn("{warning}", warning=warning)  # noqa: G010 (the name Twisted gives it)
        # No child: it is not stopped with those that still answer by it.
        self._own_tor = own_tor(settings, reactor)
        for service in onion_services(settings, reactor, self._own_tor):
            service.setServiceParent(self)

    def _assemble(self, store: Store) -> None:
        settings, identity, reactor = self._settings, self._identity, self._reactor
        delay = delivery_delay(settings.delivery.random_delay, reactor)
        self.relay = Relay(store, rules(settings), time.time, os.urandom, delay)
        self._proxy = make_proxy(settings, self.relay.counters, reactor, self._own_tor)
        conversations = Conversations(
            self.relay,
            reactor,
            settings.store.answer_timeout,
            self._proxy,
            settings.delivery.answer_time,
        )
        shows = shown(identity), context(settings, identity)
        self.sessions: SessionFactory | Edges
        if settings.server.processes == 1:
            meeting = SameProcess(conversations)
            limits = session_limits(settings)
            self.sessions = SessionFactory(meeting, *shows, limits, reactor, os.urandom)
        else:
            self.sessions = Edges(conversations, *shows, edge_start(settings), reactor)
        self._entrance.conversations = conversations
        self._entrance.sessions = self.sessions
        Rounds(self.relay, conversations, intervals(settings), reactor).setServiceParent(self)
        self.reload = Reload(settings, self.sessions)
        self.reload.setServiceParent(self)
        self._listen_to_the_sysadmin(settings)
        Stopping(reactor).setServiceParent(self)

    def _listen_to_the_sysadmin(self, settings: Settings) -> None:
        path = settings.control.socket
        if path is not None:
            in_torrc = None if settings.tor.service_directory is None else onion_host(settings)
            running = RunningRelay(
                settings.server.processes,
                self.sessions,
                self._onions,
                self._reactor.seconds,
                in_torrc=None if in_torrc is None else in_torrc.text,
                circuits=lambda: self.listener.circuits_told,
            )
            ControlSocket(self._reactor, path, running.requests).setServiceParent(self)

    def _onions(self) -> list[PublishedOnion]:
        own = [service for service in self if isinstance(service, PublishedOnion)]
        return [*own, *(port.publisher for port in self.listener.onion_ports)]

    @inlineCallbacks
    def stopService(self) -> Any:
        """Stops in order: nothing new comes in, what was noted is made safe, all is closed."""
        yield super().stopService()
        if self._proxy is not None:
            self._proxy.close()
        if self._store is not None:
            yield self._close_store(self._store)
        if self._own_tor is not None:
            yield self._own_tor.stopService()

    @inlineCallbacks
    def _close_store(self, store: Store) -> Any:
        self._store = None
        store.close()
        path = self._settings.store.snapshot
        if path is not None and isinstance(store, MemoryStore):
            try:
                yield deferToThreadPool(
                    self._reactor, self._reactor.getThreadPool(), save, store, path
                )
            except SnapshotError as error:
                self.log.critical("what is in the store is lost: {error}", error=str(error))


class Reload(Service):
    """Reads the certificate again on SIGHUP, for new connections."""

    log = Logger()

    def __init__(self, settings: Settings, sessions: SessionFactory | Edges) -> None:
        self._settings = settings
        self._sessions = sessions
        self._former: Any = None

    def startService(self) -> None:
        """Begins to listen for the signal."""
        super().startService()
        from twisted.internet import reactor

        def received(number: int, frame: FrameType | None) -> None:
            reactor.callFromThread(self.reload)  # type: ignore[attr-defined]

        try:
            self._former = signal.signal(signal.SIGHUP, received)
        except ValueError:
            self.log.info("not in the main thread: SIGHUP does not reload the certificate")

    def stopService(self) -> None:
        """Gives the signal back; if it would end the process otherwise, it does nothing now.

        A stop may take some seconds, which is when a rotated certificate or log must not end
        it. A function, unlike SIG_IGN, is not passed on to processes that are started later.
        """
        super().stopService()
        if self._former is not None:
            former = self._former if callable(self._former) else _nothing
            signal.signal(signal.SIGHUP, former)
            self._former = None

    def reload(self) -> None:
        """Takes the certificate of now into use, if it is good and of the same identity."""
        try:
            identity = load_identity(self._settings)
        except CredentialsError as error:
            self.log.error("the certificate stays as it is: {error}", error=str(error))
            return
        if identity.key_hash != self._sessions.identity.key_hash:
            self.log.error("the certificate stays as it is: the new one is of another identity")
            return
        self._sessions.show(shown(identity), context(self._settings, identity))
        self.log.info("new connections are shown the certificate read now")


def _nothing(number: int, frame: FrameType | None) -> None:
    """A handler of a signal that is ignored."""


def load_identity(settings: Settings) -> ServerIdentity:
    """The certificates and key that the configuration names. Raises `CredentialsError`."""
    server = settings.server
    return read_identity(server.certificate, server.key, server.ca_certificate, datetime.now(UTC))


def shown(identity: ServerIdentity) -> RelayIdentity:
    """The identity as the handshake shows it."""
    return RelayIdentity(identity.chain, identity.key, identity.key_hash)


def context(settings: Settings, identity: ServerIdentity) -> Any:
    """The TLS context of the relay."""
    return server_context(
        identity.chain,
        identity.key.encode(),
        request_client_certificate=settings.protocol.request_client_certificates,
    )


def rules(settings: Settings) -> Rules:
    """What the configuration says about queues and messages."""
    queues = settings.queues
    return Rules(
        new_queues=queues.new_queues,
        password=queues.password,
        quota=queues.quota,
        message_ttl=queues.message_ttl,
        expire_on_send=queues.expire_on_send,
        notification_ttl=settings.notifications.ttl,
        unused_ttl=queues.unused_ttl,
        forwarded_keys=settings.proxy.remembered_keys,
    )


def session_limits(settings: Settings) -> SessionLimits:
    """What the configuration says about connections."""
    protocol = settings.protocol
    return SessionLimits(
        handshake_time=protocol.handshake_timeout,
        send_queue=settings.delivery.send_queue,
        versions=VersionRange(protocol.minimum_version, protocol.maximum_version),
        most_by_unix=settings.tor.most_connections,
        most=most_connections(proxy=settings.proxy.enabled),
    )


def edge_start(settings: Settings) -> Start:
    """What edge processes are told of the configuration."""
    protocol, limits = settings.protocol, transport_limits(settings)
    return Start(
        listening=(),
        handshake_time=protocol.handshake_timeout,
        send_queue=settings.delivery.send_queue,
        minimum_version=protocol.minimum_version,
        maximum_version=protocol.maximum_version,
        request_client_certificates=protocol.request_client_certificates,
        setup_time=limits.setup_time,
        close_time=limits.close_time,
        high_water=limits.high_water,
        low_water=limits.low_water,
        # Rounded up, so that no edge has none.
        most_by_unix=-(-settings.tor.most_connections // settings.server.processes),
    )


def intervals(settings: Settings) -> Intervals:
    """What the configuration says about rounds."""
    inactive = settings.inactive_clients
    return Intervals(
        events=settings.delivery.end_interval,
        notifications=settings.notifications.delivery_interval,
        message_expiry=settings.queues.expiry_interval,
        notification_expiry=settings.notifications.expiry_interval,
        inactive_check=inactive.check_interval,
        inactive_ttl=inactive.ttl if inactive.disconnect else None,
    )
