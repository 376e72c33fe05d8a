"""Conformance B: queue URIs, connection requests and short links.

The reference's vectors of all of them are compared in tests/txsimplex/test_links.py and
test_short_links.py.
"""

from __future__ import annotations

from urllib.parse import unquote

import pytest

from txsimplex.addresses import Host, RelayLocation
from txsimplex.encoding import ParseError
from txsimplex.keys import Algorithm, PublicKey
from txsimplex.links import ConnectionRequest, E2EParameters, QueueAddress, Site
from txsimplex.scanning import percent_encoded, to_base64url
from txsimplex.short_links import LinkKind, LinkScheme, ShortLink
from txsimplex.smp.commands import QueueMode
from txsimplex.smp.versions import VersionRange

KEY_HASH = bytes(range(32))
KEY_HASH_TEXT = to_base64url(KEY_HASH)
ONION = Host.parse("beccx4yfxxbvyhqypaavemqurytl6hozr47wfc7uuecacjqdvwpw2xid.onion")
HOSTS = (Host.parse("smp.simplex.im"), ONION)
SERVER = RelayLocation(HOSTS, "5223", KEY_HASH)
ONE_HOST = RelayLocation(HOSTS[:1], "", KEY_HASH)
SENDER_ID = bytes(range(24))
SENDER_TEXT = to_base64url(SENDER_ID)
DH_KEY = PublicKey(Algorithm.X25519, bytes(range(100, 132)))
DH_TEXT = percent_encoded(to_base64url(DH_KEY.encode()))
LINK_KEY = bytes(range(32))
LINK_KEY_TEXT = to_base64url(LINK_KEY, padded=False)
ANY = VersionRange(1, 4)
CURRENT = VersionRange(2, 4)


def queue(
    versions: VersionRange = ANY,
    server: RelayLocation = SERVER,
    mode: QueueMode | None = QueueMode.MESSAGING,
) -> QueueAddress:
    return QueueAddress(versions, server, SENDER_ID, DH_KEY, mode)


def parsed(end: str) -> QueueAddress:
    """The queue of a URI that ends so, behind the sender's id."""
    return QueueAddress.parse(f"smp://{KEY_HASH_TEXT}@smp.simplex.im/{SENDER_TEXT}{end}")


def test_028_uri_for_all_clients() -> None:
    address = queue()
    assert str(address) == (
        f"smp://{KEY_HASH_TEXT}@smp.simplex.im:5223/{SENDER_TEXT}"
        f"#/?v=1-4&dh={DH_TEXT}&q=m&k=s&srv={ONION}"
    )
    assert QueueAddress.parse(str(address)) == address


def test_029_uri_for_clients_that_know_several_hosts() -> None:
    address = queue(CURRENT)
    text = str(address)
    assert text.startswith(f"smp://{KEY_HASH_TEXT}@smp.simplex.im,{ONION}:5223/")
    assert "srv=" not in text
    assert QueueAddress.parse(text) == address


def test_030_unknown_parameters_and_any_order() -> None:
    expected = queue(ANY, ONE_HOST)
    for query in (
        f"#/?v=1-4&dh={DH_TEXT}&q=m&k=s",
        f"#/?k=s&q=m&dh={DH_TEXT}&v=1-4",
        f"#/?extra=1&v=1-4&another=&dh={DH_TEXT}&q=m",
    ):
        assert parsed(query) == expected


def test_031_old_form_with_the_key_first() -> None:
    key = to_base64url(DH_KEY.encode())
    for query, versions in (
        ("", VersionRange(1, 1)),
        ("/?v=1", VersionRange(1, 1)),
        ("/?v=1-4", ANY),
        ("/?v=1-4&extra=1", ANY),
    ):
        assert parsed(f"#{key}{query}") == queue(versions, ONE_HOST, None)


@pytest.mark.parametrize(
    ("mode_text", "mode"),
    [
        ("", None),
        ("&k=s", QueueMode.MESSAGING),
        ("&q=m", QueueMode.MESSAGING),
        ("&q=c", QueueMode.CONTACT),
    ],
)
def test_032_mode_of_the_queue(mode_text: str, mode: QueueMode | None) -> None:
    assert parsed(f"#/?v=1-4&dh={DH_TEXT}{mode_text}").mode is mode


def test_033_a_single_version() -> None:
    for text in ("1", "1-1"):
        address = parsed(f"#/?v={text}&dh={DH_TEXT}")
        assert address.versions == VersionRange(1, 1)
        assert "v=1&" in str(address)


def test_034_invitations() -> None:
    x448 = PublicKey(Algorithm.X448, bytes(56))
    e2e = E2EParameters(VersionRange(2, 2), x448, x448)
    request = ConnectionRequest(VersionRange(2, 7), (queue(CURRENT),), e2e)
    text = str(request)
    head = f"simplex:/invitation#/?v=2-7&smp={percent_encoded(str(queue(CURRENT)))}&e2e="
    assert text.startswith(head)
    assert ConnectionRequest.parse(text) == request
    web = text.replace("simplex:", "https://simplex.chat", 1)
    assert ConnectionRequest.parse(web) == request
    site = Site(Host.parse("simplex.chat"))
    assert str(ConnectionRequest(request.versions, request.queues, e2e, site=site)) == web


def test_035_contact_addresses() -> None:
    queues = (queue(CURRENT), queue(CURRENT, ONE_HOST, QueueMode.CONTACT))
    request = ConnectionRequest(VersionRange(2, 7), queues)
    text = str(request)
    assert text.startswith("simplex:/contact#/?v=2-7&smp=")
    assert "e2e=" not in text
    assert unquote(text.partition("smp=")[2]) == f"{queues[0]};{queues[1]}"
    assert ConnectionRequest.parse(text) == request


def test_036_client_data() -> None:
    for data in ('{"type":"group","id":"1&2=3 #%;é"}', "", "x" * 1000):
        request = ConnectionRequest(VersionRange(2, 7), (queue(CURRENT),), client_data=data)
        assert ConnectionRequest.parse(str(request)).client_data == data


def test_037_short_link_of_a_contact() -> None:
    link = ShortLink(LinkKind.CONTACT, SERVER, LINK_KEY)
    assert len(LINK_KEY_TEXT) == 43
    assert str(link) == (
        f"https://smp.simplex.im/a#{LINK_KEY_TEXT}"
        f"?h={ONION}&p=5223&c={to_base64url(KEY_HASH, padded=False)}"
    )
    assert ShortLink.parse(str(link)) == link
    only_host = ShortLink(LinkKind.CONTACT, RelayLocation(HOSTS[:1], "", b""), LINK_KEY)
    assert str(only_host) == f"https://smp.simplex.im/a#{LINK_KEY_TEXT}"
    assert ShortLink.parse(str(only_host)) == only_host


def test_038_other_short_links() -> None:
    link_id = to_base64url(SENDER_ID, padded=False)
    server = RelayLocation(HOSTS, "", b"")
    once = ShortLink(LinkKind.INVITATION, server, LINK_KEY, SENDER_ID)
    assert str(once) == f"https://smp.simplex.im/i#{link_id}/{LINK_KEY_TEXT}?h={ONION}"
    group = ShortLink(LinkKind.GROUP, server, LINK_KEY, scheme=LinkScheme.SIMPLEX)
    hosts = f"smp.simplex.im%2C{ONION}"
    assert str(group) == f"simplex:/g#{LINK_KEY_TEXT}?h={hosts}"
    for link in (once, group):
        assert ShortLink.parse(str(link)) == link
    with pytest.raises(ParseError):
        ShortLink.parse(f"simplex:/x#{LINK_KEY_TEXT}?h={hosts}")
