"""The texts at the root and in docs/ point to what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXTS = sorted(
    text.relative_to(ROOT)
    for pattern in ("*.md", "docs/*.md", "bench/*.md", "changelog.d/*.md")
    for text in ROOT.glob(pattern)
)

LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.mark.parametrize("text", TEXTS, ids=str)
def test_links_within_the_project_lead_somewhere(text: Path) -> None:
    links = LINK.findall((ROOT / text).read_text())
    places = [link.partition("#")[0] for link in links if "://" not in link]
    missing = [place for place in places if place and not (ROOT / text.parent / place).exists()]
    assert not missing


def test_readme_begins_with_the_two_commands() -> None:
    first_screen = (ROOT / "README.md").read_text().splitlines()[:24]
    text = "\n".join(first_screen)
    assert "apt-get install -y git" in text
    assert "\n./run" in text
    assert "./test" in text
