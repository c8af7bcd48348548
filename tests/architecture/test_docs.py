"""Pages that are made from the code are what the code says now."""

from __future__ import annotations

from pathlib import Path

from tqbench.cli import catalog, support

ROOT = Path(__file__).parents[2]


def test_the_schemes_page_is_up_to_date() -> None:
    page = ROOT / "docs" / "schemes.md"
    assert page.read_text(encoding="utf-8") == catalog.markdown(), "stale: make docs, or tqbench schemes --markdown > docs/schemes.md"


def test_the_kernels_page_names_every_form() -> None:
    """Its first table; the second is of one version of Triton, and compiling it takes minutes."""
    page = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    missing = [row for row in support.rows() if f"| {' | '.join(row)} |" not in page]
    assert not missing, "stale: tqbench kernels compile --markdown > docs/kernels.md"
