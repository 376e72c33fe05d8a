"""`smpctl onion`: the relay's onion service: its key, which its name is made of, and clients."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any, Final

from smpd.config import Settings, load
from smpd.ctl import onion_clients
from smpd.ctl.actions import Action, Arguments, add_actions
from smpd.ctl.errors import CommandError
from smpd.ctl.services import add_service, chosen
from smpd.onion import keys_of_services, onion_hosts, read_key_file, read_onion_key
from torcfg.onion_keys import OnionKey
from txsimplex.whole_files import PRIVATE, create, replace

_KEY_FILE = "hs_ed25519_secret_key"

_EXAMPLES = """\
examples:
  smpctl onion new
  smpctl onion show
  smpctl onion restore /var/lib/tor/simplex-smp
"""


def add_to(commands: Any) -> None:
    """Adds the subcommand to the command line."""
    command = commands.add_parser(
        "onion",
        help="look after the onion service: its key, and its clients",
        description="Shows, makes, saves and brings back the key of the relay's onion service, "
        "and says who may reach it. Whoever has the key has the name. Another key takes effect "
        "when the relay starts.",
        epilog=_EXAMPLES,
    )
    actions = add_actions(command, _ACTIONS)
    onion_clients.add_to(actions)


def _show(arguments: argparse.Namespace) -> None:
    settings = load(arguments.config)
    names = [host.text for host in onion_hosts(settings)]
    print("\n".join(names or [read_onion_key(_key_file(settings, None)).address]))


def _key_file(settings: Settings, service: str | None) -> Path:
    """That of the onion service of a name. Raises `CommandError` where the relay has no key."""
    found = chosen(keys_of_services(settings), service, "whose key it has")
    if found is not None:
        return found.path
    tor = settings.tor
    if tor.onion:
        raise CommandError(_keyless(settings))
    if not tor.onion_key.exists():
        raise CommandError("the relay is no onion service: [tor] onion is off")
    _note_what_is_off(settings)
    return tor.onion_key


def _keyless(settings: Settings) -> str:
    directory = settings.tor.service_directory
    return f"the key of the onion service is tor's own, in {directory}, and the relay has none"


def _note_what_is_off(settings: Settings) -> None:
    """Says of the key in `[tor]` that the relay has no use for it, if so."""
    path = settings.tor.onion_key
    others = [each.path for each in keys_of_services(settings)]
    if settings.tor.onion or path.absolute() in others:
        return
    sentence = f"[tor] onion is off: the relay does not use the key in {path}."
    if others:
        sentence += f" That of its onionservice endpoint is in {', '.join(map(str, others))}."
    print(sentence, file=sys.stderr)


def _with_key(arguments: argparse.Namespace) -> Settings:
    settings = load(arguments.config)
    if settings.tor.service_directory is not None:
        raise CommandError(_keyless(settings))
    return settings


def _new(arguments: argparse.Namespace) -> None:
    _bring_in(_with_key(arguments), OnionKey.generate(os.urandom))


def _bring_in(settings: Settings, key: OnionKey) -> None:
    path = settings.tor.onion_key
    try:
        create(path, key.encode(), PRIVATE)
    except FileExistsError:
        if read_onion_key(path) != key:
            raise CommandError(
                f"{path} is there already, and no key is overwritten (see smpctl onion rotate)"
            ) from None
    print(key.address)
    _note_what_is_off(settings)


def _backup(arguments: argparse.Namespace) -> None:
    key = read_onion_key(_key_file(load(arguments.config), arguments.service))
    try:
        create(arguments.path, key.encode(), PRIVATE)
    except FileExistsError:
        raise CommandError(f"{arguments.path} is there already") from None
    print(key.address)


def _restore(arguments: argparse.Namespace) -> None:
    path: Path = arguments.path
    settings = _with_key(arguments)
    _bring_in(settings, read_key_file(path / _KEY_FILE if path.is_dir() else path))


def _rotate(arguments: argparse.Namespace) -> None:
    path = _key_file(load(arguments.config), arguments.service)
    former = read_onion_key(path)
    kept = path.with_name(f"{path.name}.{former.address[:8]}")
    try:
        create(kept, former.encode(), PRIVATE)
    except FileExistsError:
        if read_key_file(kept) != former:
            raise CommandError(f"{kept} is there already, with another key") from None
    key = OnionKey.generate(os.urandom)
    replace(path, key.encode(), PRIVATE)
    print(key.address)


def _path(what: str) -> Arguments:
    return lambda action: action.add_argument("path", type=Path, metavar="PATH", help=what)


_ACTIONS: Final = (
    Action(
        "show",
        _show,
        "print the name",
        "Prints the onion service's name; where the relay has several, each on a line.",
    ),
    Action(
        "new",
        _new,
        "make the key",
        "Makes the key of the onion service in [tor], unless there is one, and prints its name.",
    ),
    Action(
        "backup",
        _backup,
        "copy the key to a new file",
        "Copies the key to a new file, for its owner alone, in the form that tor has.",
        "/media/usb/onion.key",
        [_path("the new file"), add_service],
    ),
    Action(
        "restore",
        _restore,
        "bring a key in",
        "Brings in a key for the onion service in [tor]: one that was saved, that a program for "
        "vanity addresses has made, or of an onion service that was tor's own. A key that is there "
        "already stays.",
        f"/var/lib/tor/simplex-smp/{_KEY_FILE}",
        [_path(f"the file, or a HiddenServiceDir of tor with {_KEY_FILE} in it")],
    ),
    Action(
        "rotate",
        _rotate,
        "make another key, and keep the old one beside it",
        "Makes another key and prints its name. The old one stays in a file beside it that ends in "
        "the beginning of its name. Who has the old address does not reach the relay by it any "
        "more.",
        arguments=[add_service],
    ),
)
