"""How tor is told of an onion service."""

from __future__ import annotations

import os

import pytest

from torcfg.client_keys import NOBODY, ClientKey
from torcfg.onion_keys import OnionKey
from torcfg.onion_services import (
    OnionService,
    ProofOfWork,
    add_onion,
    delete_onion,
    is_target,
    rendezvous_circuits,
)

KEY = OnionKey.generate(os.urandom)
UNIX = (5223, "unix:/run/smpd/onion")


def test_a_service_for_everybody() -> None:
    assert add_onion(OnionService((UNIX,)), KEY) == (
        f"ADD_ONION {KEY.for_control()} Flags=DiscardPK Port=5223,unix:/run/smpd/onion"
    )


def test_everything_that_can_be_said() -> None:
    service = OnionService(
        (UNIX, (443, "127.0.0.1:5223")),
        streams=64,
        proof_of_work=ProofOfWork(rate=10, burst=20),
        single_hop=True,
    )
    clients = [ClientKey.generate(os.urandom).public for _ in range(2)]
    assert add_onion(service, KEY, clients) == (
        f"ADD_ONION {KEY.for_control()}"
        " Flags=DiscardPK,NonAnonymous,MaxStreamsCloseCircuit,V3Auth"
        " PoWDefensesEnabled=1 PoWQueueRate=10 PoWQueueBurst=20 MaxStreams=64"
        " Port=5223,unix:/run/smpd/onion Port=443,127.0.0.1:5223"
        f" ClientAuthV3={clients[0]} ClientAuthV3={clients[1]}"
    )


def test_a_service_for_nobody() -> None:
    """Without a key tor would let everybody in."""
    assert add_onion(OnionService((UNIX,)), KEY, ()) == (
        f"ADD_ONION {KEY.for_control()} Flags=DiscardPK,V3Auth Port=5223,unix:/run/smpd/onion"
        f" ClientAuthV3={NOBODY}"
    )


def test_the_circuits_of_its_clients() -> None:
    """control-spec, 3.9 and 4.1.1: those of other services and purposes are left alone."""
    name, other = (KEY.address[:-6], OnionKey.generate(os.urandom).address[:-6])
    lines = [
        ("3 BUILT", "HS_SERVICE_INTRO HS_STATE=HSSI_ESTABLISHED", name),
        ("12 BUILT", "HS_SERVICE_REND HS_STATE=HSSR_JOINED", name),
        ("13 EXTENDED", "HS_SERVICE_REND HS_STATE=HSSR_CONNECTING", name),
        ("14 BUILT", "HS_SERVICE_REND HS_STATE=HSSR_JOINED", other),
        ("15 BUILT", "HS_CLIENT_REND HS_STATE=HSCR_JOINED", name),
    ]
    status = "circuit-status=\n2 BUILT $7D5A~a PURPOSE=GENERAL\n" + "\n".join(
        f"{circuit} $7D5A~a,$8B1C~b BUILD_FLAGS=IS_INTERNAL,NEED_CAPACITY PURPOSE={purpose} "
        f"REND_QUERY={query} TIME_CREATED=2026-11-27T18:00:00.1"
        for circuit, purpose, query in lines
    )
    assert list(rendezvous_circuits(status, KEY)) == ["12", "13"]
    assert list(rendezvous_circuits("circuit-status=", KEY)) == []


def test_the_only_circuit_there_is() -> None:
    """Tor answers on one line then."""
    name, other = (KEY.address[:-6], OnionKey.generate(os.urandom).address[:-6])
    line = "circuit-status=7 BUILT $7D5A~a PURPOSE={} HS_STATE=HSSR_JOINED REND_QUERY={}"
    assert list(rendezvous_circuits(line.format("HS_SERVICE_REND", name), KEY)) == ["7"]
    assert list(rendezvous_circuits(line.format("HS_SERVICE_INTRO", name), KEY)) == []
    assert list(rendezvous_circuits(line.format("HS_SERVICE_REND", other), KEY)) == []


def test_the_longest_path_of_a_socket() -> None:
    target = "unix:/" + 106 * "x"
    assert is_target(target)
    assert add_onion(OnionService(((80, target),)), KEY).endswith(f" Port=80,{target}")


def test_taking_it_back() -> None:
    assert f"{delete_onion(KEY)}.onion" == f"DEL_ONION {KEY.address}"


@pytest.mark.parametrize(
    ("ports", "streams", "says"),
    [
        ((), 0, "has a port"),
        (((0, "unix:/x"),), 0, "0 is not a port"),
        (((65536, "unix:/x"),), 0, "65536 is not a port"),
        (((443, ""),), 0, "a target is"),
        (((443, "unix:/a b"),), 0, "a target is"),
        (((443, "unix:/a\r\nQUIT"),), 0, "a target is"),
        (((443, 'unix:"/a"'),), 0, "a target is"),
        (((443, "a,b"),), 0, "a target is"),
        (((443, "unix:relative"),), 0, "a target is"),
        (((443, "5223"),), 0, "a target is"),
        (((443, "localhost:5223"),), 0, "a target is"),
        (((443, "127.0.0.1:0"),), 0, "a target is"),
        (((443, "127.0.0.1:65536"),), 0, "a target is"),
        (((443, "127.0.0.256:1"),), 0, "a target is"),
        (((443, "[::1%lo]:1"),), 0, "a target is"),
        (((443, "::1:1"),), 0, "a target is"),
        (((443, "unix:/ü"),), 0, "a target is unix: and a path of at most 107 ASCII characters"),
        (((443, "unix:/" + 107 * "x"),), 0, "a target is"),
        (((443, "unix:/x"),), -1, "-1 streams"),
        (((443, "unix:/x"),), 65536, "65536 streams"),
    ],
)
def test_what_cannot_be_said(ports: tuple[tuple[int, str], ...], streams: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        OnionService(ports, streams=streams)
