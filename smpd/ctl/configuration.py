"""The option that names the relay's configuration."""

from __future__ import annotations

import argparse
from pathlib import Path

from smpd.config import DEFAULT_PATH


def add_configuration_to(command: argparse.ArgumentParser) -> None:
    """Adds `--config`, which stands before a command or after it: the last one counts."""
    command.add_argument(
        "--config",
        type=Path,
        # Without the option nothing may take the place of one before the command.
        default=argparse.SUPPRESS,
        metavar="PATH",
        help=f"configuration of the relay (default: {DEFAULT_PATH})",
    )
