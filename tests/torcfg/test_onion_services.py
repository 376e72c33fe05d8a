"""How tor is told of an onion service."""

from __future__ import annotations

import os

import pytest

from torcfg.client_keys import ClientKey
from torcfg.onion_keys import OnionKey
from torcfg.onion_services import OnionService, ProofOfWork, add_onion, delete_onion

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


def test_taking_it_back() -> None:
    assert f"{delete_onion(KEY)}.onion" == f"DEL_ONION {KEY.address}"


@pytest.mark.parametrize(
    ("ports", "streams", "says"),
    [
        ((), 0, "has a port"),
        (((0, "unix:/x"),), 0, "0 is not a port"),
        (((65536, "unix:/x"),), 0, "65536 is not a port"),
        (((443, ""),), 0, "a target without"),
        (((443, "unix:/a b"),), 0, "a target without"),
        (((443, "unix:/a\r\nQUIT"),), 0, "a target without"),
        (((443, 'unix:"/a"'),), 0, "a target without"),
        (((443, "a,b"),), 0, "a target without"),
        (((443, "unix:/x"),), -1, "-1 streams"),
        (((443, "unix:/x"),), 65536, "65536 streams"),
    ],
)
def test_what_cannot_be_said(ports: tuple[tuple[int, str], ...], streams: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        OnionService(ports, streams=streams)
