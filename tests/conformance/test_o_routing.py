"""Conformance O: private message routing, on a relay whose proxying is off."""

from __future__ import annotations

import os

from tests.conformance.clients import Relay, ask, err, new_id, new_key
from tests.conformance.versions import at_versions
from txsimplex.addresses import Host, RelayLocation
from txsimplex.keys import Algorithm
from txsimplex.smp.commands import Pfwd, Prxy, Rfwd
from txsimplex.smp.messages import Pong

VERSIONS = (6, 8, 11, 14, 18)


@at_versions(*VERSIONS)
async def test_189_prxy_where_proxying_is_off(relay: Relay, version: int) -> None:
    raw = await relay.raw(version)
    itself = relay.process.location
    closed_port = RelayLocation((Host.parse("127.0.0.1"),), "1", os.urandom(32))
    for location in (itself, closed_port):
        for password in (None, b"password"):
            assert await ask(raw, Prxy(location, password)) == err("PROXY BASIC_AUTH")
    # So there is no session with another relay to forward to.
    forward = Pfwd(version, new_key(Algorithm.X25519).public, os.urandom(16000))
    assert await ask(raw, forward, os.urandom(32)) == err("PROXY NO_SESSION")


@at_versions(*VERSIONS)
async def test_203_rfwd_without_a_key_in_the_handshake(relay: Relay, version: int) -> None:
    raw = await relay.raw(version, session_key=False)
    for forwarded in (os.urandom(100), b""):
        assert await ask(raw, Rfwd(forwarded)) == err("PROXY BROKER TRANSPORT NO_AUTH")
    assert await ask(raw, b"PING") == Pong()


@at_versions(6)
async def test_203_rfwd_without_alpn(relay: Relay, version: int) -> None:
    raw = await relay.raw(version, alpn=None)
    assert await ask(raw, Rfwd(new_id())) == err("PROXY BROKER TRANSPORT NO_AUTH")


@at_versions(7, 8, 11, 14, 18)
async def test_204_rfwd_with_garbage(relay: Relay, version: int) -> None:
    for proxy in (False, True):
        raw = await relay.raw(version, proxy=proxy)
        for size in (0, 15, 16, 100, 16000):
            assert await ask(raw, Rfwd(os.urandom(size))) == err("CRYPTO")
        assert await ask(raw, Rfwd(new_id()), new_id()) == err("CMD HAS_AUTH")
