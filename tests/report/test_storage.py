"""Saved caches on every output: bytes by part, both lanes of stages, the worst vectors; and nothing of a cell without proof."""

from __future__ import annotations

import csv
import dataclasses
import io

import pytest

from tests.report.test_speed import outputs, row
from tqbench.core.record import Estimate
from tqbench.report import across, details
from tqbench.report.gate import judge
from tqbench.report.table import tables

PARAMS = {"entropy": "zstd", "level": None, "repetitions": 3, "protocol": "strict"}


def cell(make, name: str | None = "turbo4", context: int = 1024, **params):
    return make.cell(name, task="storage", params={"context": context, **PARAMS, **params})


@pytest.fixture
def full(make, run_of):
    records = [
        make.stored(cell(make, name, context, entropy=coder, level=level), disturbed=name == "q8_0" and context == 4096)
        for coder, level in (("zstd", 9), ("ans", None))
        for context in (1024, 4096)
        for name in (None, "q8_0", "turbo4")
    ]
    return run_of(records)


def test_the_table_has_bytes_times_and_the_worst_vectors(full) -> None:
    assert [table.heading.rpartition("text ")[2].partition(" · storage")[2] for table in tables(full)] == [
        *(" @ d1024 · zstd 9", " @ d4096 · zstd 9"),
        *(" @ d1024 · ans", " @ d4096 · ans"),
    ]
    found = row(full, "d1024 · zstd 9", "turbo4")
    assert (found["file"], found["× f16"], found["entropy"], found["× anew"]) == ("4.8 MiB", "4.72", "1.09", "15.5")
    assert (found["save ms"], found["load ms"], found["first token ms"]) == ("210", "95.0", "160")
    assert (found["worst cos K"], found["worst cos V"]) == ("0.9712", "0.9632")
    below = next(shown for table in tables(full) for shown in table.rows if shown.label == "turbo4").figures
    assert {"4,883 B/token", "112 MB/s", "248 MB/s", "anew 2,480", "0.9931"} <= {figure.detail for figure in below}
    facts = " · ".join(tables(full)[0].facts)
    assert "coder zstd (zstandard 0.25.0), in one thread" in facts
    assert "8 tokens after it equal to the last bit those of a cache never saved" in facts


def test_a_disturbed_row_is_marked(full) -> None:
    assert row(full, "d4096 · zstd 9", "q8_0")["save ms"] == "210 !"
    assert row(full, "d4096 · zstd 9", "turbo4")["save ms"] == "210"


def test_parts_add_up_and_say_what_they_were_before(full) -> None:
    cells = next(iter(full.settings().values()))
    parts, agreement = details.stored(full, cells)
    assert parts.head == ("payload", "metadata", "sinks", "window", "exact", "overhead", "file", "tables")
    shown = dict(zip(parts.head, parts.rows[2][1], strict=True))
    assert sum(shown[name].order for name in parts.head[:-2]) == shown["file"].order
    assert (shown["payload"].text, shown["payload"].detail) == ("4.3 MiB", "4.7 MiB")
    assert (shown["tables"].text, shown["tables"].detail) == ("64.0 KiB", "64 B counted")
    assert [title for title, _ in agreement.rows][-2:] == ["turbo4 K", "turbo4 V"]
    assert (agreement.rows[-1][1][0].text, agreement.rows[-1][1][0].detail) == ("0.9000", "0.25")


def test_both_lanes_are_reconciled_with_the_whole(full) -> None:
    cells = next(iter(full.settings().values()))
    save, load = details.stages(full, cells)
    assert save.head == ("encode", "gather", "entropy", "write", "unexplained", "whole")
    assert [figure.text for figure in save.rows[2][1]] == ["50", "1.0", "120", "20", "9.0", "200"]
    assert load.head == ("model", "entropy", "read", "restore", "unexplained", "whole")
    assert "from the file to the first token" in load.caption


def test_every_output_has_it(full) -> None:
    texts = outputs(full)
    for name in ("terminal", "markdown", "page"):
        assert "15.5" in texts[name], name
    for words in ("In the file", "Agreement", "milliseconds of saving, from the exact context to the file"):
        assert words in texts["page"], words
    assert {"stages-save-1", "stages-load-1", "storage-context-1", "storage-context-2"} <= texts.keys()
    first = next(line for line in csv.DictReader(io.StringIO(texts["csv"])) if line["scheme"] == "turbo4")
    assert (first["stored_ratio"], first["ttft_gain"], first["cos_k_min"]) == ("4.72", "15.5", "0.97123")


def test_coders_have_tables_of_their_own_across_contexts(full) -> None:
    found = across.grids(full)
    assert [grid.title for grid in found] == ["Stored, × f16", "First token from a file, × anew"] * 2
    assert found[0].head == ("1,024", "4,096")


def test_gates_judge_it(make, run_of) -> None:
    record = make.stored(cell(make), ttft_gain=Estimate(15.5, 14.0, 17.0))
    run = run_of(
        [make.stored(cell(make, None)), record],
        gates=[make.gate("turbo4", "stored_ratio", 4.0), make.gate("turbo4", "ttft_gain", 20.0), make.gate("turbo4", "load_ms", 100.0)],
    )
    assert [verdict.status for verdict in judge(run)] == ["pass", "fail", "inconclusive"]  # the last is a time without an interval


def test_a_cell_without_proof_shows_nothing(make, run_of) -> None:
    told = dataclasses.replace(make.stored(cell(make), stored_ratio=Estimate(43210.0)), outcome="inactive", reason="it came back changed")
    run = run_of([make.stored(cell(make, "q8_0"))], unrun=[told.cell])
    texts = outputs(dataclasses.replace(run, records=(*run.records, told)))
    assert "it came back changed" in texts["page"]
    assert not any("43,210" in text or "43210" in text for text in texts.values())
