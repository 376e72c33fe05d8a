"""Tells Twisted of ``onionservice:`` endpoints; loads nothing of them until one is asked for."""

from typing import Any

from twisted.internet.interfaces import IStreamServerEndpoint, IStreamServerEndpointStringParser
from twisted.plugin import IPlugin
from zope.interface import implementer


@implementer(IPlugin, IStreamServerEndpointStringParser)
class _OnionServices:
    prefix = "onionservice"

    # By position only: a description may have an argument of any name.
    def parseStreamServer(
        self, reactor: Any, /, *arguments: str, **named: str
    ) -> IStreamServerEndpoint:
        from torcfg.descriptions import OnionDescription
        from torcfg.endpoints import OnionEndpoint

        return OnionEndpoint(reactor, OnionDescription.read(arguments, named))


onion_services = _OnionServices()
