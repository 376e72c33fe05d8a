"""Lists the items of docs/spec/smp-conformance.md with their tests.

Exit status 1 when a delivered item has none, or a test names an item that is not there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tests.conformance.coverage import Coverage, put_together
from tests.conformance.numbers import find_tests, read_items


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--short", action="store_true", help="only the sums and what is wrong")
    options = parser.parse_args(arguments)
    coverage = put_together(read_items(), find_tests())
    if not options.short:
        _list(coverage)
    tested = len(coverage.items.keys() & coverage.tests.keys())
    print(
        f"{len(coverage.items)} items: {tested} with a test, "
        f"{len(coverage.missing())} delivered without one, "
        f"{len(coverage.later.keys() - coverage.tests.keys())} to come later"
    )
    faults = list(coverage.faults())
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def _list(coverage: Coverage) -> None:
    for number, item in coverage.items.items():
        print(f"{item.section} {number:3} {item.sentence}")
        for test in coverage.tests.get(number, ()):
            print(f"        {test.file}::{test.name}")
        if number in coverage.later:
            print(f"        later: {coverage.later[number]}")
        elif number not in coverage.tests:
            print("        NO TEST")


if __name__ == "__main__":
    sys.exit(main())
