"""What leaves the house: LaTeX, documents with tables in them, archives, and several runs on one page."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import itertools
import re
import zipfile

import pytest

from tqbench.core.errors import ConfigError
from tqbench.core.record import Estimate
from tqbench.report import across, figures, latex, markdown, page, together
from tqbench.report.bundle import write_bundle
from tqbench.report.conclusion import conclude
from tqbench.report.embed import embed, markers
from tqbench.report.labels import spread
from tqbench.report.run import load
from tqbench.report.write import write_figures

HOSTILE = r"\input{/etc/passwd}%&$#_^~{}<b>|]("


@pytest.fixture
def one(make, run_of):
    records = [make.baseline(), make.record(make.cell("q8_0")), make.record(make.cell(HOSTILE), kld=Estimate(0.05, 0.04, 0.06))]
    return run_of([*records, make.broken(make.cell("lost"))])


def test_latex_has_the_same_figures_and_nothing_that_it_would_obey(one) -> None:
    text = latex.render(one)
    assert r"q8\_0 & 8.5 & 100 & 20.1235 & +0.123 {\scriptsize {[}+0.101, +0.147{]}} & 0.01234" in text
    assert r"lost & \multicolumn{6}{l}{\emph{oom}} \\" in text
    assert r"\input" not in text
    commands = set(re.findall(r"\\[a-zA-Z]+", text))
    assert commands <= {
        f"\\{name}" for name in ("usepackage", "begin", "centering", "caption", "toprule", "midrule", "bottomrule", "end")
    } | {
        f"\\{name}" for name in ("scriptsize", "multicolumn", "emph", "Delta", "cdot", "times", "leq", "approx", "pm", "textbackslash")
    } | {f"\\{name}" for name in ("textasciitilde", "textasciicircum", "textless", "textgreater", "textbar", "textquotesingle", "ldots")}
    bare = re.sub(r"\\[{}%&$#_\\]", "", text)
    assert bare.count("{") == bare.count("}")
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    widths = {len(re.findall(r"(?<!\\)&", line)) for line in rows if "multicolumn" not in line}
    assert widths == {6}  # the scheme, and six figures
    assert latex.escape("名\x1b") == "{[}U+540D{]}{[}U+FFFD{]}"


def test_a_document_gets_the_tables_between_its_markers_and_keeps_the_rest(one) -> None:
    start, end = markers("suite")
    text = f"before\n{start}\nold\n{end}\nafter\n"
    new = embed(text, one)
    assert markdown.brief(one) in new
    assert new.startswith("before\n")
    assert new.endswith("after\n")
    assert "old" not in new
    assert embed(new, one) == new
    for broken in ("nothing", f"{end}\n{start}", text + text):
        with pytest.raises(ConfigError, match="put one line"):
            embed(broken, one)


def test_a_bundle_is_whole_the_same_each_time_and_makes_the_page_again(one, tmp_path) -> None:
    judged, views = [(one, conclude(one))], together.views([one])
    count = write_bundle(judged, views, tmp_path / "a.zip")
    write_bundle(judged, views, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "out")
    assert len(names) == count
    wanted = {"index.html", "report.md", "README.md", "MANIFEST.sha256", "figures/kld-bits-1.pdf", "figures/kld-bits-1.csv"}
    assert wanted | {"tables/suite-run.tex", "tables/suite-run.csv", "tables/suite-run.md", "runs/suite-run/plan.json"} <= set(names)
    manifest = dict(reversed(line.split("  ", 1)) for line in (tmp_path / "out" / "MANIFEST.sha256").read_text().splitlines())
    assert manifest == {n: hashlib.sha256((tmp_path / "out" / n).read_bytes()).hexdigest() for n in names if n != "MANIFEST.sha256"}
    again = load(tmp_path / "out" / "runs" / "suite-run")
    assert page.render(again, conclude(again), figures.charts(again)) == (tmp_path / "out" / "index.html").read_text()


def test_figures_come_in_every_form_with_the_numbers_that_they_show(one, tmp_path) -> None:
    views = together.views([one])
    write_figures(views, tmp_path)
    for form, begins in (("pdf", b"%PDF"), ("png", b"\x89PNG"), ("svg", b"<?xml"), ("csv", b"scheme,")):
        assert (tmp_path / f"kld-bits-1.{form}").read_bytes().startswith(begins)
    rows = {row["scheme"]: row for row in csv.DictReader(io.StringIO((tmp_path / "kld-bits-1.csv").read_text()))}
    assert (float(rows["q8_0"]["kld"]), float(rows["q8_0"]["high"]), rows["q8_0"]["frontier"]) == (0.01234, 0.0128, "True")
    assert rows[HOSTILE]["frontier"] == "False"


def test_runs_share_a_table_only_where_they_are_comparable(make, run_of) -> None:
    first = run_of([make.baseline(), make.record(make.cell("q8_0"))], run="first")
    same = run_of([make.baseline(), make.record(make.cell("turbo4"))], run="same")
    (view,) = together.views([first, same])
    assert [cell.label for cell in view.run.cells] == ["baseline", "q8_0", "turbo4"]
    assert view.notes == ["From suite same: turbo4."]
    again = dataclasses.replace(make.record(make.cell("q8_0")), fingerprint="0" * 64)
    (view,) = together.views([first, run_of([make.baseline(), again], run="again")])
    assert [cell.label for cell in view.run.cells] == ["baseline", "q8_0", "q8_0 (again)"]  # other scores: both are shown


def test_what_is_not_comparable_stands_apart_and_says_why(make, run_of) -> None:
    first = run_of([make.baseline(), make.record(make.cell("q8_0"))], run="first")
    text = make.record(make.cell()).text | {"ids_sha256": "22" * 32}
    others = {
        "the tokens differ": [make.baseline(), make.record(make.cell("turbo4"), text=text)],
        "the weights differ": [dataclasses.replace(r, model=r.model | {"weights": "other"}) for r in (make.record(make.cell("turbo4")),)],
        "the baselines' ppl differ": [make.baseline(ppl=20.5), make.record(make.cell("turbo4"))],
    }
    others["the tokens differ"][0] = dataclasses.replace(others["the tokens differ"][0], text=text)
    for i, (why, records) in enumerate(others.items()):
        views = together.views([first, run_of(records, run=f"other{i}")])
        assert len(views) == 2, why
        assert why in views[1].notes[0]
    names = [chart.name for view in views for chart in view.charts]
    assert len(names) == len(set(names))
    assert why in markdown.several([(run, conclude(run)) for run in (first, views[1].run)], views)


@pytest.mark.parametrize("task", ["decode", "prefill", "storage"])
def test_times_of_two_runs_never_share_a_table(make, run_of, task) -> None:
    params = {"context": 512, "new": 8, "chunk": 256, "repetitions": 3, "protocol": "strict", "entropy": "zstd", "level": None}
    runs = []
    for name in ("first", "again"):
        cell = make.cell("q8_0", task=task, params=params)
        runs.append(run_of([make.stored(cell) if task == "storage" else make.speed(cell)], run=name))
    views = together.views(runs)
    assert [len(view.run.cells) for view in views] == [1, 1]
    assert "not timed in turn" in views[1].notes[0]


def test_names_at_the_ends_of_lines_keep_their_order_and_their_distance() -> None:
    heights = [10.0, 11.0, 50.0, 12.0, 98.0, 99.0]
    moved = spread(heights, 10, 0, 100)
    order = sorted(range(6), key=lambda i: heights[i])
    gaps = [moved[b] - moved[a] for a, b in itertools.pairwise(order)]
    assert min(gaps) >= 10 - 1e-9
    assert 0 <= min(moved) <= max(moved) <= 100
    assert spread([], 10, 0, 100) == []
    assert spread([5.0, 50.0], 10, 0, 100) == [5.0, 50.0]


@pytest.mark.parametrize(("form", "begins"), [("md", "**tiny"), ("latex", "% \\usepackage{booktabs"), ("csv", "model,backend")])
def test_the_command_prints_tables_and_writes_nothing(one, tmp_path, monkeypatch, form: str, begins: str) -> None:
    from typer.testing import CliRunner

    from tqbench.cli import app

    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["report", str(one.folder), "--format", form])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(begins)
    assert not (tmp_path / "reports").exists()


def test_one_row_says_everything_on_a_scheme_at_the_greatest_contexts(make, run_of) -> None:
    other = {"recipe": "llamacpp", "context": 512, "tokens": 4096}
    records = [r for context in (512, 1024) for r in (make.baseline(context), make.record(make.cell("q8_0", context)))]
    records += [make.record(make.cell("q8_0", params=other)), make.speed(make.cell("q8_0", task="memory", params={"context": 2048}))]
    (grid,) = across.overview(run_of(records))
    assert grid.head == (
        *("bits", "Δppl @ 1,024 stream", "KLD @ 1,024 stream"),
        *("bits", "Δppl @ 512 llamacpp", "KLD @ 512 llamacpp"),
        *("B/token @ 2,048", "tokens/GiB @ 2,048"),
    )
    rows = dict(grid.rows)
    assert [figure.text for figure in rows["q8_0"]] == ["8.5", "+0.123", "0.01234"] * 2 + ["12,240", "87,724"]
    assert across.overview(run_of(records[:2], run="single")) == []
