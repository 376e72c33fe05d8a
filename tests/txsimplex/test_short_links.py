"""Short links and the data behind them (smp-wire.md §13, smp-agent.md §4; conformance 37, 38)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from tests.txsimplex.test_addresses import NUMBER_TOO_LARGE, locations
from tests.txsimplex.test_links import public_keys, ranges, requests
from tests.txsimplex.vectors import Vector, load, name_of, same, value
from txsimplex.addresses import RelayLocation, ServerAddress, parse_hosts
from txsimplex.boxes import BoxKey
from txsimplex.encoding import LargeMessageError, ParseError, Reader, whole
from txsimplex.keys import Algorithm, PrivateKey, PublicKey
from txsimplex.link_data import (
    FIXED_DATA_SIZE,
    USER_DATA_SIZE,
    ContactData,
    FixedData,
    LinkDataError,
    LinkFault,
    Owner,
    UserData,
    check_owners,
    open_link_data,
    seal,
    sign,
)
from txsimplex.links import ConnectionRequest
from txsimplex.short_links import (
    LinkKind,
    LinkScheme,
    ShortLink,
    contact_link_secrets,
    invitation_link_secret,
    link_key_of,
)
from txsimplex.smp.versions import VersionRange

REFUSED_HERE = {"short-link/p-bad": NUMBER_TOO_LARGE}


def link_of(fields: dict[str, Any]) -> ShortLink:
    """A short link from the fields of a vector."""
    server = fields["server"]
    link_id = fields.get("link_id")
    return ShortLink(
        LinkKind[fields["type"].upper()],
        RelayLocation(
            parse_hosts(",".join(server["hosts"])), server["port"], value(server["key_hash"])
        ),
        value(fields["link_key"]),
        None if link_id is None else value(link_id),
        LinkScheme(fields["scheme"]),
    )


class TestTexts:
    @pytest.mark.parametrize("vector", load("addresses", "short-link"), ids=name_of)
    def test_read(self, vector: Vector) -> None:
        if "parsed" not in vector or vector["name"] in REFUSED_HERE:
            with pytest.raises(ParseError):
                ShortLink.parse(vector["text"])
            return
        link = ShortLink.parse(vector["text"])
        assert link == link_of(vector["parsed"]["fields"])
        canonical = vector["parsed"]["canonical"]
        assert str(link) == (vector["text"] if canonical == "same" else canonical)

    def test_the_differences_are_vectors(self) -> None:
        accepted = [v["name"] for v in load("addresses", "short-link") if "parsed" in v]
        assert REFUSED_HERE.keys() <= set(accepted)

    @pytest.mark.parametrize("vector", load("addresses", "short-link-encode"), ids=name_of)
    def test_written(self, vector: Vector) -> None:
        fields = vector["fields"]
        link = link_of(fields)
        assert str(link) == vector["text"]
        assert vector["text_decodes_to"] == "same"
        assert ShortLink.parse(vector["text"]) == link
        assert same(vector["binary"], link.encode())
        binary_fields = vector["binary_decodes_to"]
        assert whole(link.encode(), ShortLink.read) == link_of(
            fields if binary_fields == "same" else binary_fields
        )

    def test_conformance_37(self) -> None:
        key = bytes(32)
        address = ServerAddress.parse(f"smp://{'A' * 43}@a.b,c.onion:5223")
        link = ShortLink(LinkKind.CONTACT, address.location, key)
        assert str(link) == f"https://a.b/a#{'A' * 43}?h=c.onion&p=5223&c={'A' * 43}"
        only_host = RelayLocation(parse_hosts("a.b"), "", b"")
        assert str(replace(link, server=only_host)) == f"https://a.b/a#{'A' * 43}"

    def test_conformance_38(self) -> None:
        address = ServerAddress.parse("smp://AAAA@a.b,c.onion")
        link = ShortLink(LinkKind.INVITATION, address.location, b"\0\0\0", b"\x04\x10\x41")
        assert str(link) == "https://a.b/i#BBBB/AAAA?h=c.onion&c=AAAA"
        group = ShortLink(LinkKind.GROUP, address.location, b"\0\0\0", scheme=LinkScheme.SIMPLEX)
        assert str(group) == "simplex:/g#AAAA?h=a.b%2Cc.onion&c=AAAA"

    @pytest.mark.parametrize("kind", LinkKind)
    def test_only_invitations_have_an_id(self, kind: LinkKind) -> None:
        link_id = None if kind is LinkKind.INVITATION else b"id"
        server = RelayLocation(parse_hosts("a.b"), "", b"")
        with pytest.raises(ValueError, match="link id"):
            ShortLink(kind, server, b"key", link_id)

    def test_no_secret_in_repr(self) -> None:
        server = RelayLocation(parse_hosts("a.b"), "", b"")
        link = ShortLink(LinkKind.INVITATION, server, b"the-key", b"the-id")
        assert "the-" not in repr(link)

    @pytest.mark.parametrize(
        "text",
        [
            "https://a.b/a#" + "A" * 344,
            "https://a.b/a#AAAA?c=" + "A" * 344,
            f"https://a.b/i#{'A' * 344}/AAAA",
            "https://a.b/a#AAAA?p=",
            "https://a.b/a#AAAA?h=a%ff",
        ],
    )
    def test_refused(self, text: str) -> None:
        with pytest.raises(ParseError):
            ShortLink.parse(text)

    @pytest.mark.parametrize(
        "data", [b"", b"C", b"CI", b"X", b"I", b"CA\0", b"CX\x01\x03a.b\0\0\0"]
    )
    def test_binary_refused(self, data: bytes) -> None:
        with pytest.raises(ParseError):
            whole(data, ShortLink.read)


class TestSecrets:
    @pytest.mark.parametrize("vector", load("addresses", "short-link-kdf"), ids=name_of)
    def test_derived_as_by_the_reference(self, vector: Vector) -> None:
        link_key = value(vector["link_key"])
        link_id, key = contact_link_secrets(link_key)
        assert link_id.hex() == vector["contact_link_id"]
        assert key.hex() == vector["contact_key"]
        assert invitation_link_secret(link_key).hex() == vector["invitation_key"]


def user_data_of(vector: Vector) -> UserData:
    """The user data of a vector."""
    given = vector["user_data"]
    if "repeat" in given:
        count, letter = given["repeat"].replace("'", "").split(" x ")
        data = int(count) * letter.encode()
    else:
        data = given["text"].encode("utf-8")
    contact = None
    if vector["contact"]:
        owners = tuple(
            Owner(
                value(owner["owner_id"]),
                PublicKey.decode(value(owner["owner_key"])),
                value(owner["signature"]),
            )
            for owner in given["owners"]
        )
        contact = ContactData(given["direct"], owners, tuple(map(ShortLink.parse, given["relays"])))
    return UserData(VersionRange(*vector["agent_versions"]), data, contact)


def fixed_data_of(vector: Vector) -> FixedData:
    """The fixed data of a vector."""
    entity_id = vector["link_entity_id"]
    return FixedData(
        VersionRange(*vector["agent_versions"]),
        root_of(vector).public,
        whole(value(vector["conn_req_binary"]), ConnectionRequest.read),
        None if entity_id is None else value(entity_id),
    )


def root_of(vector: Vector) -> PrivateKey:
    return PrivateKey(Algorithm.ED25519, value(vector["root_private_raw"]))


class TestLinkData:
    VECTORS = load("addresses", "short-link-data")

    @pytest.mark.parametrize("vector", VECTORS, ids=name_of)
    def test_made_as_by_the_reference(self, vector: Vector) -> None:
        root = root_of(vector)
        fixed = fixed_data_of(vector).encode()
        link_key = link_key_of(fixed)
        assert link_key.hex() == vector["link_key"]
        if vector["contact"]:
            link_id, secret = contact_link_secrets(link_key)
            assert link_id.hex() == vector["link_id"]
        else:
            secret = invitation_link_secret(link_key)
        assert secret.hex() == vector["key"]
        signed_fixed = sign(fixed, root)
        signed_user = sign(user_data_of(vector).encode(), root)
        assert same(vector["signed_fixed_data"], signed_fixed)
        assert same(vector["signed_user_data"], signed_user)
        key = BoxKey(secret)
        sealed = seal(signed_fixed, key, value(vector["fixed_nonce"]), FIXED_DATA_SIZE)
        assert same(vector["enc_fixed_data"], sealed)
        assert len(sealed) == 2048
        sealed = seal(signed_user, key, value(vector["user_nonce"]), USER_DATA_SIZE)
        assert same(vector["enc_user_data"], sealed)
        assert len(sealed) == 13824

    @pytest.mark.parametrize("vector", VECTORS, ids=name_of)
    def test_opened(self, vector: Vector) -> None:
        key = BoxKey(value(vector["key"]))
        user = user_data_of(vector)
        sealed = seal(
            sign(user.encode(), root_of(vector)), key, value(vector["user_nonce"]), USER_DATA_SIZE
        )
        opened = open_link_data(
            value(vector["enc_fixed_data"]), sealed, value(vector["link_key"]), key
        )
        assert opened == (fixed_data_of(vector), user)

    @pytest.mark.parametrize("vector", VECTORS, ids=name_of)
    def test_more_at_the_end_is_for_later_versions(self, vector: Vector) -> None:
        fixed, user = fixed_data_of(vector), user_data_of(vector)
        entity = b"" if fixed.entity_id is not None else b"\0"
        read = FixedData.read(Reader(fixed.encode() + entity + b"more"))
        assert read == (replace(fixed, entity_id=b"") if entity else fixed)
        assert UserData.read(Reader(user.encode() + b"more")) == user

    def test_too_much_data(self) -> None:
        with pytest.raises(LargeMessageError):
            seal(bytes(FIXED_DATA_SIZE - 1), BoxKey(bytes(32)), bytes(24), FIXED_DATA_SIZE)


ROOT = PrivateKey(Algorithm.ED25519, b"\1" * 32)
OTHER = PrivateKey(Algorithm.ED25519, b"\2" * 32)
THIRD = PrivateKey(Algorithm.ED25519, b"\3" * 32)
KEY = BoxKey(b"\4" * 32)
FIXED = replace(fixed_data_of(TestLinkData.VECTORS[0]), root_key=ROOT.public)
USER = UserData(VersionRange(2, 7), b"user")


def fault_of(
    fixed: bytes, user: bytes, link_key: bytes | None = None, key: BoxKey = KEY
) -> LinkFault | None:
    """The fault that signed data is refused for, encrypted with `KEY` and opened with `key`."""
    signature_size = 1 + 64
    link_key = link_key or link_key_of(fixed[signature_size:])
    sealed = (
        seal(fixed, KEY, bytes(24), FIXED_DATA_SIZE),
        seal(user, KEY, bytes(24), USER_DATA_SIZE),
    )
    try:
        open_link_data(*sealed, link_key, key)
    except LinkDataError as error:
        return error.fault
    return None


class TestRefusals:
    FIXED = sign(FIXED.encode(), ROOT)
    USER = sign(USER.encode(), ROOT)

    def test_good(self) -> None:
        assert fault_of(self.FIXED, self.USER) is None

    def test_key(self) -> None:
        assert fault_of(self.FIXED, self.USER, key=BoxKey(bytes(32))) is LinkFault.DECRYPTION

    def test_cut(self) -> None:
        for fixed, user in ((b"", b""), (b"x" * 30, b"x" * 100)):
            with pytest.raises(LinkDataError) as caught:
                open_link_data(fixed, user, bytes(32), KEY)
            assert caught.value.fault is LinkFault.DECRYPTION

    def test_malformed(self) -> None:
        assert fault_of(self.FIXED[:-3], self.USER) is LinkFault.MALFORMED
        assert fault_of(b"\x41", self.USER) is LinkFault.MALFORMED
        assert fault_of(self.FIXED, self.USER[:-1]) is LinkFault.MALFORMED
        assert fault_of(self.FIXED, sign(b"X\0\1\0\1\0", ROOT)) is LinkFault.MALFORMED

    def test_hash(self) -> None:
        assert fault_of(self.FIXED, self.USER, bytes(32)) is LinkFault.HASH

    def test_signature(self) -> None:
        assert fault_of(sign(FIXED.encode(), OTHER), self.USER) is LinkFault.SIGNATURE

    def test_user_signature(self) -> None:
        user = sign(USER.encode(), OTHER)
        assert fault_of(self.FIXED, user) is LinkFault.USER_SIGNATURE

    def test_user_data_by_another_owner(self) -> None:
        owner = Owner.authorised(b"other", OTHER.public, ROOT)
        user = replace(USER, contact=ContactData(owners=(owner,)))
        assert fault_of(self.FIXED, sign(user.encode(), OTHER)) is None
        assert fault_of(self.FIXED, sign(user.encode(), THIRD)) is LinkFault.USER_SIGNATURE

    def test_an_owner_by_himself(self) -> None:
        owner = Owner.authorised(b"other", OTHER.public, OTHER)
        user = replace(USER, contact=ContactData(owners=(owner,)))
        assert fault_of(self.FIXED, sign(user.encode(), OTHER)) is LinkFault.OWNER

    def test_chains_of_owners(self) -> None:
        second = Owner.authorised(b"2", OTHER.public, ROOT)
        third = Owner.authorised(b"3", THIRD.public, OTHER)
        check_owners(ROOT.public, [second, third])
        for owners in (
            [third],
            [third, second],
            [second, second],
            [second, Owner.authorised(b"2", THIRD.public, ROOT)],
            [second, Owner.authorised(b"3", OTHER.public, ROOT)],
            [Owner.authorised(b"1", ROOT.public, ROOT)],
        ):
            with pytest.raises(LinkDataError) as caught:
                check_owners(ROOT.public, owners)
            assert caught.value.fault is LinkFault.OWNER

    def test_no_invitations_among_relays(self) -> None:
        server = RelayLocation(parse_hosts("a.b"), "", b"")
        link = ShortLink(LinkKind.INVITATION, server, b"key", b"id")
        user = replace(USER, contact=ContactData(relays=(link,)))
        assert fault_of(self.FIXED, sign(user.encode(), ROOT)) is LinkFault.MALFORMED

    def test_only_ed25519_owns(self) -> None:
        key = PrivateKey(Algorithm.ED448, bytes(57))
        fixed = sign(replace(FIXED, root_key=key.public).encode(), key)
        assert fault_of(fixed, self.USER, link_key_of(fixed[115:])) is LinkFault.MALFORMED


parts = st.binary(min_size=1, max_size=40)
short_links = st.builds(
    lambda kind, server, key, link_id, scheme, port: ShortLink(
        kind,
        replace(server, port=port),
        key,
        link_id if kind is LinkKind.INVITATION else None,
        scheme,
    ),
    st.sampled_from(LinkKind),
    locations,
    parts,
    parts,
    st.sampled_from(LinkScheme),
    st.just("") | st.integers(0, 65535).map(str),
)
contact_links = short_links.filter(lambda link: link.kind is not LinkKind.INVITATION)
owners = st.builds(Owner, parts, public_keys(Algorithm.ED25519), parts)
user_data = st.builds(
    UserData,
    ranges(0, 9),
    st.binary(max_size=400),
    st.none()
    | st.builds(
        ContactData,
        st.booleans(),
        st.lists(owners, max_size=2).map(tuple),
        st.lists(contact_links, max_size=2).map(tuple),
    ),
)
fixed_data = st.builds(
    FixedData, ranges(0, 9), public_keys(Algorithm.ED25519), requests, st.none() | parts
)


@given(short_links)
def test_text_round_trip(link: ShortLink) -> None:
    assert ShortLink.parse(str(link)) == link


@given(short_links)
def test_binary_round_trip(link: ShortLink) -> None:
    read = whole(link.encode(), ShortLink.read)
    assert read == replace(link, scheme=LinkScheme.HTTPS)


@given(user_data)
def test_user_data_round_trip(data: UserData) -> None:
    read = whole(data.encode(), UserData.read)
    assert read.encode() == data.encode()
    assert (read.versions, read.data) == (data.versions, data.data)


@given(fixed_data)
def test_fixed_data_round_trip(data: FixedData) -> None:
    read = whole(data.encode(), FixedData.read)
    assert (read.versions, read.root_key, read.entity_id) == (
        data.versions,
        data.root_key,
        data.entity_id,
    )
    assert read.request == whole(data.request.encode(), ConnectionRequest.read)


@given(st.text("htps:/simplex.iacgrA#?=&,%0123", max_size=40) | st.text(max_size=40))
def test_any_text_is_a_link_or_refused(text: str) -> None:
    for tail in (text, "https://a.b/a#AA" + text, "simplex:/i#AAAA/AAAA?h=a.b" + text):
        try:
            link = ShortLink.parse(tail)
        except ParseError:
            continue
        assert ShortLink.parse(str(link)) == link
        assert whole(link.encode(), ShortLink.read) == replace(link, scheme=LinkScheme.HTTPS)


BINARIES = [value(v["binary"]) for v in load("addresses", "short-link-encode")]
BINARIES += [value(v["signed_fixed_data"])[65:] for v in TestLinkData.VECTORS]
BINARIES += [user_data_of(v).encode() for v in TestLinkData.VECTORS]


@given(st.data())
def test_any_bytes_are_read_or_refused(data: st.DataObject) -> None:
    changed = bytearray(data.draw(st.sampled_from(BINARIES)))
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    for again in (link_again, fixed_data_again, user_data_again):
        try:
            read = again(bytes(changed))
        except ParseError:
            continue
        assert again(read) == read


def link_again(data: bytes) -> bytes:
    return whole(data, ShortLink.read).encode()


def fixed_data_again(data: bytes) -> bytes:
    return whole(data, FixedData.read).encode()


def user_data_again(data: bytes) -> bytes:
    return whole(data, UserData.read).encode()
