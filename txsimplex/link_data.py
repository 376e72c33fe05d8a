"""What a short link stands for: signed, padded and encrypted data at the relay.

The fixed data is the connection request; its hash is the key in the link, so that
nobody can put another in its place. The user data can be changed by the owners
(docs/spec/smp-agent.md §4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from txsimplex.boxes import NONCE_SIZE, BoxError, BoxKey
from txsimplex.encoding import ParseError, Reader, boolean, large, short, u8
from txsimplex.keys import Algorithm, PrivateKey, PublicKey, verify
from txsimplex.links import ConnectionRequest
from txsimplex.short_links import LinkKind, ShortLink, link_key_of
from txsimplex.smp.versions import VersionRange

FIXED_DATA_SIZE: Final = 2008
"""Bytes to which signed fixed data is padded; encrypted they are 2,048."""
USER_DATA_SIZE: Final = 13784
"""Bytes to which signed user data is padded; encrypted they are 13,824."""

_LARGE: Final = 255
"""Stands for the length of a short string where a large one follows."""


class LinkFault(Enum):
    """Why the data of a link is refused; the value says it in words."""

    DECRYPTION = "the data of the link was not encrypted with its key"
    MALFORMED = "the data of the link is malformed"
    HASH = "the data of the link is not what the link was made for"
    SIGNATURE = "the fixed data of the link is not signed by its owner"
    OWNER = "the owners of the link are not all authorised"
    USER_SIGNATURE = "the user data of the link is not signed by an owner"


class LinkDataError(Exception):
    """Data of a link that is refused; `fault` says why."""

    def __init__(self, fault: LinkFault) -> None:
        super().__init__(fault.value)
        self.fault = fault


def _root_key(reader: Reader) -> PublicKey:
    key = PublicKey.decode(reader.short())
    if key.algorithm is not Algorithm.ED25519:
        raise ParseError("not an Ed25519 key")
    return key


@dataclass(frozen=True, slots=True)
class FixedData:
    """The part of the data that never changes. `root_key` is the owner's."""

    versions: VersionRange
    root_key: PublicKey
    request: ConnectionRequest
    entity_id: bytes | None = field(default=None, repr=False)

    def encode(self) -> bytes:
        """The bytes to be hashed and signed."""
        entity_id = b"" if self.entity_id is None else short(self.entity_id)
        key = short(self.root_key.encode())
        return self.versions.encode() + key + self.request.encode() + entity_id

    @classmethod
    def read(cls, reader: Reader) -> FixedData:
        """Reads what `encode` writes; what follows is left. Raises `ParseError`."""
        versions, root_key = VersionRange.read(reader), _root_key(reader)
        request = ConnectionRequest.read(reader)
        position = reader.position
        try:
            entity_id = reader.short()
        except ParseError:
            reader.position = position
            return cls(versions, root_key, request)
        return cls(versions, root_key, request, entity_id)


@dataclass(frozen=True, slots=True)
class Owner:
    """Another owner of a contact link, authorised by the root key or an owner before."""

    owner_id: bytes = field(repr=False)
    key: PublicKey
    signature: bytes = field(repr=False)

    @classmethod
    def authorised(cls, owner_id: bytes, key: PublicKey, signer: PrivateKey) -> Owner:
        """An owner authorised by `signer`, the root key or the key of another owner."""
        return cls(owner_id, key, signer.sign(owner_id + key.encode()))

    def is_authorised_by(self, key: PublicKey) -> bool:
        """Whether `key` signed that this is an owner."""
        return verify(key, self.owner_id + self.key.encode(), self.signature)

    def encode(self) -> bytes:
        """The binary form: all in one short string."""
        return short(short(self.owner_id) + short(self.key.encode()) + short(self.signature))

    @classmethod
    def read(cls, reader: Reader) -> Owner:
        """Reads what `encode` writes. Raises `ParseError`."""
        inner = Reader(reader.short())
        owner_id = inner.short()
        return cls(owner_id, _root_key(inner), inner.short())


@dataclass(frozen=True, slots=True)
class ContactData:
    """What only contact links have in their user data."""

    direct: bool = True
    """Whether to connect to the queue of the link itself."""
    owners: tuple[Owner, ...] = ()
    relays: tuple[ShortLink, ...] = ()


@dataclass(frozen=True, slots=True)
class UserData:
    """The part of the data that owners can change; `contact` is None for invitations."""

    versions: VersionRange
    data: bytes = field(repr=False)
    contact: ContactData | None = None

    def encode(self) -> bytes:
        """The bytes to be signed."""
        head = self.versions.encode()
        data = short(self.data) if len(self.data) < _LARGE else u8(_LARGE) + large(self.data)
        if self.contact is None:
            return b"I" + head + data
        owners = u8(len(self.contact.owners)) + b"".join(map(Owner.encode, self.contact.owners))
        relays = u8(len(self.contact.relays)) + b"".join(map(ShortLink.encode, self.contact.relays))
        return b"C" + head + boolean(self.contact.direct) + owners + relays + data

    @classmethod
    def read(cls, reader: Reader) -> UserData:
        """Reads what `encode` writes; what follows is left. Raises `ParseError`."""
        tag = reader.take(1)
        if tag not in {b"I", b"C"}:
            raise ParseError("not user data of a link")
        versions = VersionRange.read(reader)
        contact = _read_contact(reader) if tag == b"C" else None
        size = reader.u8()
        data = reader.large() if size == _LARGE else reader.take(size)
        return cls(versions, data, contact)


def _read_contact(reader: Reader) -> ContactData:
    direct = reader.bool()
    owners = [Owner.read(reader) for _ in range(reader.u8())]
    relays = [ShortLink.read(reader) for _ in range(reader.u8())]
    if any(relay.kind is LinkKind.INVITATION for relay in relays):
        raise ParseError("a relay with an invitation link")
    return ContactData(direct, tuple(owners), tuple(relays))


def sign(data: bytes, key: PrivateKey) -> bytes:
    """The signature of an Ed25519 key over `data` as a short string, and `data`."""
    return short(key.sign(data)) + data


def seal(signed: bytes, key: BoxKey, nonce: bytes, size: int) -> bytes:
    """The data as the relay keeps it: the nonce and the box of what is padded to `size`.

    `signed` is what `sign` gives, `size` one of the two sizes of this module.
    Raises `LargeMessageError` when it does not fit.
    """
    return nonce + key.seal_padded(signed, nonce, size)


@dataclass(frozen=True, slots=True)
class _Signed:
    signature: bytes
    data: bytes

    @classmethod
    def open(cls, sealed: bytes, key: BoxKey) -> _Signed:
        try:
            reader = Reader(key.open_padded(sealed[NONCE_SIZE:], sealed[:NONCE_SIZE]))
        except (BoxError, ParseError):
            raise LinkDataError(LinkFault.DECRYPTION) from None
        return cls(reader.short(), reader.rest())

    def is_by(self, keys: Sequence[PublicKey]) -> bool:
        return any(verify(key, self.data, self.signature) for key in keys)


def open_link_data(
    fixed: bytes, user: bytes, link_key: bytes, key: BoxKey
) -> tuple[FixedData, UserData]:
    """What a link stands for, from the two parts that the relay keeps (§4).

    `link_key` is of the link, `key` of the key derived from it. Everything is
    checked that can be checked without the link's server: the hash of the fixed
    data, the signatures, the owners. Raises `LinkDataError`.
    """
    try:
        signed_fixed, signed_user = _Signed.open(fixed, key), _Signed.open(user, key)
        fixed_data = FixedData.read(Reader(signed_fixed.data))
        user_data = UserData.read(Reader(signed_user.data))
    except ParseError:
        raise LinkDataError(LinkFault.MALFORMED) from None
    if link_key_of(signed_fixed.data) != link_key:
        raise LinkDataError(LinkFault.HASH)
    if not signed_fixed.is_by([fixed_data.root_key]):
        raise LinkDataError(LinkFault.SIGNATURE)
    owners = () if user_data.contact is None else user_data.contact.owners
    check_owners(fixed_data.root_key, owners)
    if not signed_user.is_by([fixed_data.root_key, *(owner.key for owner in owners)]):
        raise LinkDataError(LinkFault.USER_SIGNATURE)
    return fixed_data, user_data


def check_owners(root_key: PublicKey, owners: Sequence[Owner]) -> None:
    """Checks that each owner is authorised by the root key or an owner before it.

    No id and no key may be there twice. Raises `LinkDataError`.
    """
    keys = [root_key]
    ids = set()
    for owner in owners:
        if (
            owner.key in keys
            or owner.owner_id in ids
            or not any(owner.is_authorised_by(key) for key in keys)
        ):
            raise LinkDataError(LinkFault.OWNER)
        keys.append(owner.key)
        ids.add(owner.owner_id)
