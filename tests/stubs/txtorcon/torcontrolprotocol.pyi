from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.protocols.basic import LineOnlyReceiver

class TorDisconnectError(RuntimeError): ...

class TorProtocolFactory(Factory):
    def __init__(self, password_function: Callable[[], str | None] = ...) -> None: ...

class TorControlProtocol(LineOnlyReceiver):
    transport: Any
    version: str
    post_bootstrap: Deferred[TorControlProtocol]
    def when_disconnected(self) -> Deferred[object]: ...
    def queue_command(self, cmd: str) -> Deferred[str]: ...
    def get_info_raw(self, *args: str) -> Deferred[str]: ...
    def add_event_listener(self, evt: str, callback: Callable[[str], None]) -> Deferred[object]: ...
