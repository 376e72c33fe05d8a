"""The example in docs/client.md works as it stands there."""

from __future__ import annotations

import sys
from pathlib import Path

from twisted.internet.utils import getProcessOutputAndValue

from tests.coroutines import in_reactor
from tests.txsimplex.client.conftest import RunningRelay

ROOT = Path(__file__).parents[3]


@in_reactor
async def test_the_example(relay: RunningRelay, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "client.md").read_text()
    example = tmp_path / "example.py"
    example.write_text(text.partition("```python\n")[2].partition("```")[0])
    output, errors, status = await getProcessOutputAndValue(
        sys.executable, [str(example), str(relay.address)], {"PYTHONPATH": str(ROOT)}
    )
    assert errors == b""
    assert status == 0
    assert output == b"b'hello'\n"
