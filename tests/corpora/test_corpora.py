"""Texts are recognised by what they are, not by what they are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from tqbench.core.errors import ConfigError
from tqbench.corpora import load, names, recipes, wikitext_2


def test_the_names_are_the_files() -> None:
    assert names() == ["file", "python-docs", "wikitext-2"]


def test_python_docs_are_there_and_hashed() -> None:
    text = load({"name": "python-docs"})
    assert len(text.text) > 300_000
    assert len(text.sha256) == 64
    assert "pydoc_data" in text.origin


def test_a_file_that_is_not_wikitext_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "wiki.test.raw"
    fake.write_text(" = Robert Boulter = \n")
    monkeypatch.setenv("TQBENCH_WIKITEXT", str(fake))
    with pytest.raises(ConfigError, match="not the raw wikitext-2 test split"):
        load({"name": "wikitext-2"})


def test_a_file_is_relative_to_its_suite(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("words", encoding="utf-8")
    assert load({"name": "file", "path": "notes.txt"}, tmp_path).text == "words"
    with pytest.raises(ConfigError, match="cannot be read"):
        load({"name": "file", "path": "other.txt"}, tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'python-docs'"):
        load({"name": "python-doc"}, tmp_path)


@pytest.mark.wikitext
def test_the_hub_rows_give_the_same_file(wikitext: str) -> None:
    """The hub's builder keeps one row per line and empties blank ones; its test split has 4,358 rows."""
    rows = [line if line.strip() else "" for line in wikitext.splitlines(keepends=True)]
    assert len(rows) == 4358
    assert wikitext_2.join(rows) == wikitext
    assert recipes.prepare({"recipe": "gptq"}, wikitext) == "\n\n".join(rows)


@pytest.mark.wikitext
def test_wikitext_is_whole(wikitext: str) -> None:
    assert len(wikitext.encode()) == 1_290_590
