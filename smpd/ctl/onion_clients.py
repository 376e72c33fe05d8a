"""`smpctl onion clients`: who may reach the relay's onion service."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, Final

from smpd.config import Settings, load
from smpd.ctl.actions import Action, add_actions
from smpd.ctl.errors import CommandError
from smpd.ctl.running import NotRunning, ask, control_socket
from smpd.ctl.services import add_service, chosen
from smpd.ctl.status import state_of
from smpd.endpoints import onion_endpoints
from smpd.onion import ClientsOfService, clients_of_services
from torcfg.client_files import MOST_CLIENTS
from torcfg.client_keys import ClientKey, is_client_name, read_public
from torcfg.onion_keys import KeyFileError

_EXAMPLES = """\
examples:
  smpctl onion clients add alice
  smpctl onion clients list
  smpctl onion clients remove alice
"""


def add_to(actions: Any) -> None:
    """Adds the subcommand to the command line."""
    command = actions.add_parser(
        "clients",
        help="say who may reach the onion service",
        description="Names clients that may reach the relay's onion service, and lets nobody else: "
        "to others it is as if it did not exist. As long as none was ever named, everybody may. "
        "What is changed takes effect at once when the relay runs.",
        epilog=_EXAMPLES,
    )
    add_actions(command, _ACTIONS)


def _add_name(action: argparse.ArgumentParser) -> None:
    action.add_argument("client", type=_name, metavar="NAME", help="what you call it")


def _add_key(action: argparse.ArgumentParser) -> None:
    action.add_argument(
        "--key",
        type=_key,
        metavar="KEY",
        help="its public key in base32, where it has made the key itself",
    )


def _name(text: str) -> str:
    if not is_client_name(text):
        raise argparse.ArgumentTypeError(
            "allowed: 1 to 64 letters, digits, dots, _ and -, beginning with a letter or digit"
        )
    return text


def _key(text: str) -> str:
    try:
        return read_public(text.removeprefix("descriptor:x25519:"))
    except KeyFileError as error:
        raise argparse.ArgumentTypeError(f"found {error}; allowed: 52 of A-Z and 2-7") from None


def _clients(settings: Settings, name: str | None) -> ClientsOfService:
    """Those of the onion service of that name, which need not be said if there is one only.

    Raises `CommandError` where there is no onion service that they could be for.
    """
    found = chosen(clients_of_services(settings), name, "that clients can be named for")
    if found is not None:
        return found
    if settings.tor.onion:
        raise CommandError(
            "the onion service is tor's own, and its clients are in authorized_clients in "
            f"{settings.tor.service_directory}"
        )
    if onion_endpoints(settings.server.listen):
        raise CommandError("the onionservice endpoint has no clients= in listen in [server]")
    raise CommandError("the relay is no onion service: [tor] onion is off")


def _add(arguments: argparse.Namespace) -> None:
    settings, name = load(arguments.config), arguments.client
    clients = _clients(settings, arguments.service)
    address, files = clients.address, clients.files
    before = files.names()
    if before is not None and len(before) >= MOST_CLIENTS:
        raise CommandError(f"there are {MOST_CLIENTS} clients already, and tor takes no more")
    secret = None if arguments.key else ClientKey.generate(os.urandom)
    try:
        files.add(name, arguments.key if secret is None else secret.public)
    except FileExistsError:
        raise CommandError(f"there is a client {name} already") from None
    if secret is not None:
        print(secret.for_client(address))
        _note(
            f"This line is for {name} alone, and is not kept here. It goes into a file that "
            "ends in .auth_private, in the ClientOnionAuthDir of the client's tor."
        )
    if before is None:
        _note("From now on nobody else reaches the onion service.")
    _take_effect(settings)


def _list(arguments: argparse.Namespace) -> None:
    files = _clients(load(arguments.config), arguments.service).files
    names = files.names()
    if names is None:
        _note("No client was named: everybody may reach the onion service.")
    elif not names:
        _note("No client is left: nobody may reach the onion service.")
    for name in names or ():
        try:
            print(f"{name} {files.key(name)}")
        except (KeyFileError, UnicodeDecodeError) as error:
            raise CommandError(f"the key of {name} cannot be used: {error}") from None


def _remove(arguments: argparse.Namespace) -> None:
    settings, name = load(arguments.config), arguments.client
    files = _clients(settings, arguments.service).files
    try:
        files.remove(name)
    except FileNotFoundError:
        raise CommandError(f"there is no client {name}") from None
    if not files.names():
        _note(
            "No client is left: nobody may reach the onion service. "
            '"smpctl onion clients open" lets everybody in.'
        )
    _take_effect(settings)


def _open(arguments: argparse.Namespace) -> None:
    settings = load(arguments.config)
    files = _clients(settings, arguments.service).files
    if files.names() is None:
        raise CommandError("everybody may reach the onion service already")
    try:
        files.remove_all()
    except KeyFileError as error:
        raise CommandError(str(error)) from None
    _take_effect(settings)


def _take_effect(settings: Settings) -> None:
    """Tells the relay, if it runs; otherwise it will see for itself."""
    try:
        answer = ask(control_socket(settings), "onion clients")
    except NotRunning:
        _note("No relay runs that could be told: this takes effect when it starts.")
        return
    except CommandError as error:
        raise CommandError(f"this takes effect when the relay starts again: {error}") from None
    for onion in answer.get("onion", ()):
        if onion["state"] not in ("publishing", "published"):
            _note(f"This takes effect later: the onion service is {state_of(onion)}.")


def _note(sentence: str) -> None:
    print(sentence, file=sys.stderr)


_ACTIONS: Final = (
    Action(
        "add",
        _add,
        "let a client in",
        "Lets a client in. Makes a key and prints the line for the client's own tor, once; or "
        "takes the public key of a client that has made one. With the first one, all others are "
        "shut out.",
        "alice",
        [_add_name, _add_key, add_service],
    ),
    Action(
        "list",
        _list,
        "list them",
        "Lists the clients with their public keys.",
        arguments=[add_service],
    ),
    Action(
        "remove",
        _remove,
        "let a client in no more",
        "Lets a client in no more. All connections by Tor are closed; those of others come back. "
        "When the last one is removed, nobody may connect.",
        "alice",
        [_add_name, add_service],
    ),
    Action(
        "open",
        _open,
        "let everybody in",
        "Removes all clients, and lets everybody in.",
        arguments=[add_service],
    ),
)
