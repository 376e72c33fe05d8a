"""What descriptions of endpoints say that are onion services."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from twisted.internet.endpoints import quoteStringArgument, serverFromString

from torcfg.descriptions import (
    PREFIX,
    DescriptionError,
    OnionDescription,
    endpoint_parts,
    is_control,
)
from torcfg.endpoints import OnionEndpoint

CONTROL = (
    r"tor's control socket or port, such as unix\:/run/tor/control or tcp\:127.0.0.1\:9051, with a "
    "path of at most 107 bytes"
)
SOCKET = "a path of at most 107 ASCII characters without spaces, quotation marks and commas"
PORTS = "ports from 1 to 65535, each once, such as 5223+443"


def read(rest: str) -> OnionDescription:
    kind, arguments, named = endpoint_parts(f"{PREFIX}:{rest}")
    assert kind == PREFIX
    return OnionDescription.read(arguments, named)


def test_the_least_that_can_be_said() -> None:
    assert read("80:key=/srv/onion.key") == OnionDescription(
        (80,), Path("/srv/onion.key"), Path("/srv/onion.key.sock")
    )


def test_everything_that_can_be_said() -> None:
    text = (
        r"5223+443:key=/srv/onion.key:socket=/run/s.sock:mode=660:control=tcp\:127.0.0.1\:9051"
        ":passwordfile=/srv/pw:clients=/srv/c:streams=64:pow=yes:singlehop=yes"
    )
    assert read(text) == OnionDescription(
        ports=(5223, 443),
        key=Path("/srv/onion.key"),
        socket=Path("/run/s.sock"),
        mode=0o660,
        control="tcp:127.0.0.1:9051",
        password_file=Path("/srv/pw"),
        clients=Path("/srv/c"),
        streams=64,
        proof_of_work=True,
        single_hop=True,
    )
    assert read("80:key=k:pow=no:singlehop=no") == read("80:key=k")


def names(last: int) -> st.SearchStrategy[str]:
    characters = st.characters(min_codepoint=33, max_codepoint=last, blacklist_characters='/",')
    return st.text(characters, min_size=1, max_size=40).filter(
        lambda name: name.isprintable() and name not in (".", "..")
    )


paths = names(0x24F).map(lambda name: Path("/srv") / name)
sockets = names(0x7E).map(lambda name: Path("/srv") / name)
controls = st.one_of(
    paths.map(lambda path: f"unix:{quoteStringArgument(str(path))}".replace("=", "\\=")),
    st.integers(1, 65535).map(lambda port: f"tcp:127.0.0.1:{port}"),
)
descriptions = st.builds(
    OnionDescription,
    st.lists(st.integers(1, 65535), min_size=1, max_size=4, unique=True).map(tuple),
    paths,
    sockets,
    st.integers(0, 0o777),
    controls,
    st.none() | paths,
    st.none() | paths,
    st.integers(0, 65535),
    st.booleans(),
    st.booleans(),
)


def written(given: OnionDescription) -> str:
    parts = {
        "key": str(given.key),
        "socket": str(given.socket),
        "mode": f"{given.mode:03o}",
        "control": given.control,
        "streams": str(given.streams),
        "pow": "yes" if given.proof_of_work else "no",
        "singlehop": "yes" if given.single_hop else "no",
    }
    for name, path in (("passwordfile", given.password_file), ("clients", given.clients)):
        if path is not None:
            parts[name] = str(path)
    quoted = [f"{name}={quoteStringArgument(text)}" for name, text in parts.items()]
    return ":".join((PREFIX, "+".join(map(str, given.ports)), *quoted))


@given(descriptions)
def test_what_was_written_is_read(wanted: OnionDescription) -> None:
    """By Twisted's own way, and by that of configurations."""
    text = written(wanted)
    endpoint = serverFromString(object(), text)
    assert isinstance(endpoint, OnionEndpoint)
    assert endpoint.description == wanted == read(text.removeprefix(f"{PREFIX}:"))


@given(st.text(max_size=80))
def test_anything_else_is_refused_in_a_sentence(text: str) -> None:
    try:
        read(text)
    except DescriptionError as error:
        assert str(error).startswith("found ")  # noqa: PT017 - or it is a description


@pytest.mark.parametrize(
    ("rest", "found", "allowed"),
    [
        ("key=k", "no ports", PORTS),
        ("80:443:key=k", "more than ports", PORTS),
        ("0:key=k", "ports '0'", PORTS),
        ("80+80:key=k", "ports '80+80'", PORTS),
        ("80+:key=k", "ports '80+'", PORTS),
        ("80", "no key", "the path of the onion service's key file, without spaces,"),
        ("80:key=k:mode=rw", "mode 'rw'", "permissions in three octal digits, such as 660"),
        ("80:key=k:streams=-1", "streams '-1'", "a whole number from 0 to 65535"),
        ("80:key=k:pow=on", "pow 'on'", "yes or no"),
        ("80:key=k:control=own", "control 'own'", CONTROL),
        ("80:key=k:password=hunter2", "'password'", "key, socket, mode, control, passwordfile, cl"),
    ],
)
def test_what_is_wrong_is_said(rest: str, found: str, allowed: str) -> None:
    says = re.escape(f"found {found} in an onionservice endpoint; allowed: {allowed}")
    for parse in (read, lambda each: serverFromString(object(), f"{PREFIX}:{each}")):
        with pytest.raises(ValueError, match=f"^{says}"):
            parse(rest)


@pytest.mark.parametrize("name", ["key", "socket", "passwordfile", "clients"])
@pytest.mark.parametrize("path", ["", "/", "/a b", '/"a', "/a,b", "/a\0b", "/a\nb"])
def test_paths_that_tor_cannot_be_told_of(name: str, path: str) -> None:
    with pytest.raises(DescriptionError, match=f"found {name} "):
        read(f"80:key=/k:{name}={path}")


@pytest.mark.parametrize("path", ["/srv/ü", "/srv/" + 103 * "x"])
def test_sockets_that_tor_cannot_be_told_of(path: str) -> None:
    """Nor can it be told of one beside a key with such a name, which by itself is good."""
    with pytest.raises(DescriptionError) as caught:
        read(f"80:key=/k:socket={path}")
    assert str(caught.value) == (
        f"found socket {path!r} in an onionservice endpoint; allowed: {SOCKET}"
    )
    with pytest.raises(DescriptionError) as caught:
        read(f"80:key={path}")
    assert str(caught.value) == (
        f"found socket '{path}.sock' in an onionservice endpoint; allowed: {SOCKET}"
    )
    assert read(f"80:key={path}:socket=/s").key == Path(path)


def test_the_longest_path_of_a_socket() -> None:
    path = "/" + 106 * "x"
    assert read(f"80:key=/k:socket={path}").socket == Path(path)
    assert is_control(f"unix:{path}")


@pytest.mark.parametrize("name", ["reactor", "self", "", "arguments"])
def test_names_of_python_are_no_arguments(name: str) -> None:
    with pytest.raises(ValueError, match=f"^found '{name}' in an onionservice endpoint"):
        serverFromString(object(), f"{PREFIX}:80:key=k:{name}=1")


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("unix:/run/tor/control", True),
        ("unix:/a\\:b", True),
        ("tcp:localhost:9051", True),
        ("tcp:localhost:0", False),
        ("tcp:localhost:x", False),
        ("tcp:localhost", False),
        ("tcp::9051", False),
        ("unix:", False),
        ("unix:/a:timeout=x", False),
        ("unix:/a\0", False),
        ("unix:/" + 107 * "x", False),
        ("unix:/" + 53 * "ü", True),
        ("unix:/" + 54 * "ü", False),
        ("ssl:localhost:9051", False),
        ("9051", False),
        ("", False),
    ],
)
def test_where_tor_is_told(text: str, *, good: bool) -> None:
    assert is_control(text) is good
