"""Pages that are made from the code are what the code says now."""

from __future__ import annotations

from pathlib import Path

from tqbench.cli import catalog

ROOT = Path(__file__).parents[2]


def test_the_schemes_page_is_up_to_date() -> None:
    page = ROOT / "docs" / "schemes.md"
    assert page.read_text(encoding="utf-8") == catalog.markdown(), "stale: make docs, or tqbench schemes --markdown > docs/schemes.md"
