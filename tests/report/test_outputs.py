"""Every output of a run: the same numbers, no number without proof, nothing that names can break."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tqbench.core.record import Estimate, Record
from tqbench.metrics.verdict import paid
from tqbench.report import figures, junit, markdown, page, summary, terminal
from tqbench.report.conclusion import conclude
from tqbench.report.points import points
from tqbench.report.run import load
from tqbench.report.table import tables
from tqbench.report.text import bounds
from tqbench.report.write import write, write_results

HOSTILE = "<script>alert(1)</script>|`x`|[b](javascript:x)[red]$a_b$&amp;{{7*7}}\"'"


def on_terminal(run, width=200):
    from rich.console import Console

    console = Console(file=io.StringIO(), width=width, color_system=None)
    for part in (*terminal.render(run), terminal.verdicts(run, conclude(run))):
        console.print(part)
    return console.file.getvalue()


def xml(text):
    return ET.fromstring(text)  # noqa: S314 - our own output


def outputs(run):
    """Every text that a run becomes."""
    found, charts = conclude(run), figures.charts(run)
    texts = {
        "terminal": on_terminal(run),
        "markdown": markdown.render(run, found, charts),
        "page": page.render(run, found, charts),
        "csv": summary.render(run),
        "junit": junit.render(run, found),
    }
    return texts | {chart.name: chart.svg for chart in charts}


@pytest.fixture
def full(make, run_of):
    records = [
        make.baseline(),
        make.record(make.cell("q8_0"), coverage=0.4),
        make.record(make.cell("turbo4"), (4.25, 4.25), kld=Estimate(0.05, 0.04, 0.06)),
    ]
    mixed = make.cell({"name": "q8_0/turbo4", "k": {"codec": "block"}, "v": {"codec": "codebook"}})
    exact = {name: Estimate(0.0, 0.0, 0.0) for name in ("dppl", "kld", "kld_p99")}
    identity = make.cell({"name": "turbo4", "bypass": "identity", "k": {"codec": "codebook"}, "v": {"codec": "codebook"}})
    records += [make.record(mixed, (8.5, 4.25), dppl=Estimate(0.003, -0.002, 0.008)), make.record(identity, **exact)]
    return run_of(records, [make.gate("q8_0"), make.gate("turbo4", "kld", 0.05)])


def figure(run, label, column):
    from tqbench.report.table import COLUMNS

    index = [c.title for c in COLUMNS].index(column)
    return next(row.figures[index] for table in tables(run) for row in table.rows if row.label == label)


def test_figures_in_tables_are_those_of_the_records(full):
    assert (figure(full, "q8_0", "Δppl").text, figure(full, "q8_0", "Δppl").detail) == ("+0.123", "[+0.101, +0.147]")
    assert (figure(full, "q8_0", "KLD").text, figure(full, "q8_0", "KLD").detail) == ("0.01234", "[0.01190, 0.01280]")
    assert (figure(full, "q8_0", "ppl").text, figure(full, "q8_0", "top-1 %").text) == ("20.1235", "95.12")
    assert (figure(full, "q8_0", "coverage %").text, figure(full, "turbo4", "coverage %").text) == ("40*", "100")
    assert (figure(full, "q8_0/turbo4", "bits").text, figure(full, "q8_0/turbo4", "bits").detail) == ("6.375", "(K 8.5 / V 4.25)")
    assert (figure(full, "baseline", "bits").text, figure(full, "baseline", "Δppl").text) == ("32", "–")


def test_coverage_is_that_of_the_side_that_was_packed_less(make, run_of):
    """One figure for both would hide a V that was hardly packed behind an exact K."""
    whole = make.record(make.cell("hardly"), coverage=0.54)
    evidence = [{**e, "attended_packed": 1000 if e["side"] == "k" else 80} for e in whole.evidence]
    apart = dataclasses.replace(whole, evidence=evidence)
    shorter = {"coverage": 0.31, "coverage_sides": {"k": 0.57, "v": 0.05}}  # the other texts were, and the evidence is of the longest
    longest = dataclasses.replace(apart, cell=make.cell("longest"), **shorter)
    older = dataclasses.replace(apart, cell=make.cell("older"), coverage=0.31)
    protected = [{**e, "counts": e["layer"] > 0} for e in make.record(make.cell()).evidence]
    alike = dataclasses.replace(make.record(make.cell("alike"), coverage=0.75), evidence=protected)
    run = run_of([make.baseline(), apart, longest, older, alike])
    shown = {name: figure(run, name, "coverage %") for name in ("hardly", "longest", "older", "alike")}
    assert (shown["hardly"].text, shown["hardly"].detail, shown["hardly"].order) == ("8*", "(K 100 / V 8)", 0.08)
    assert (shown["longest"].text, shown["longest"].detail, shown["longest"].order) == ("5*", "(K 57 / V 5)", 0.05)
    assert (shown["older"].text, shown["older"].detail, shown["older"].order) == ("31*", "(K and V together)", 0.31)
    assert (shown["alike"].text, shown["alike"].detail) == ("75", "")
    texts = outputs(run)
    assert "8* (K 100 / V 8) " in texts["markdown"].replace("\\", "")
    assert "8*<small>(K 100 / V 8)</small>" in texts["page"]
    assert "100/8" in texts["terminal"]
    for said in ("coverage: of K or of V, whichever was packed less", "K and V together: the record is older"):
        assert all(said in texts[name] for name in ("terminal", "markdown", "page"))


def test_words_below_figures_are_explained_where_their_own_column_has_them(make, run_of):
    """K / V below bits is no word about coverage."""
    run = run_of([make.baseline(), make.record(make.cell("q8_0/turbo3"), (8.5, 3.25))])
    assert figure(run, "q8_0/turbo3", "bits").detail == "(K 8.5 / V 3.25)"
    assert figure(run, "q8_0/turbo3", "coverage %").detail == ""
    assert tables(run)[0].marks() == []


def test_bits_say_what_those_of_packed_values_leave_out(make, run_of):
    """Windows, sinks and learned tables may be most of what a scheme takes."""
    held = make.record(make.cell("plain"), (2.0, 2.0)).ledger  # 17,664 bytes of cache
    more = {"kept": {"bits_resident": 4.625}, "learned": {"bits_resident": 2.001, "tables": 5 << 20}, "trifle": {"tables": 170}}
    records = [
        dataclasses.replace(make.record(make.cell(n), (2.0, 2.0)), ledger={**held, **own}) for n, own in {"plain": {}, **more}.items()
    ]
    mixed = make.record(make.cell("both"), (3.0, 1.0))
    records.append(dataclasses.replace(mixed, ledger={**mixed.ledger, "bits_resident": 4.0, "tables": 5 << 20}))
    run = run_of([make.baseline(), *records])
    shown = {name: figure(run, name, "bits") for name in ("plain", "kept", "learned", "trifle", "both")}
    assert {name: one.text for name, one in shown.items()} == dict.fromkeys(shown, "2")
    both = "(K 3 / V 1, kept 4, tables 5.0 MiB)"
    details = {"plain": "", "kept": "(kept 4.62)", "learned": "(tables 5.0 MiB)", "trifle": "", "both": both}
    assert {name: one.detail for name, one in shown.items()} == details
    assert shown["both"].brief == "3/1\nkept 4\n+5 MiB"
    texts = outputs(run)
    assert f"2 {both}" in texts["markdown"]
    assert "2<small>(kept 4.62)</small>" in texts["page"]
    for name in ("terminal", "markdown", "page"):
        assert "kept: bits over all values at this context" in texts[name]
        assert "what codecs learned, once for the model" in texts[name]


def test_below_the_floor_there_is_no_difference_to_print(full):
    shown = figure(full, "q8_0/turbo4", "Δppl")
    assert (shown.text, shown.detail) == ("≤ floor ≈", "(floor 0.010)")
    assert "+0.003" not in on_terminal(full)


def test_an_interval_that_reaches_beyond_the_floor_is_shown(make, run_of):
    """What may be twice the floor is not below it; who reads must see that."""
    beyond = {"across": Estimate(0.003, -0.004, 0.011), "apart": Estimate(0.006, 0.001, 0.011)}  # the floor is 0.01
    run = run_of([make.baseline(), *(make.record(make.cell(name), dppl=dppl) for name, dppl in beyond.items())])
    for name, text, detail in (
        ("across", "+0.0030 ≈", "[−0.0040, +0.0110] (floor 0.010)"),
        ("apart", "+0.0060", "[+0.0010, +0.0110] (floor 0.010)"),
    ):
        shown = figure(run, name, "Δppl")
        assert (shown.text, shown.detail) == (text, detail)


def test_who_stopped_when_it_was_decided_shows_the_interval_that_pays_for_it(make, run_of):
    """A gate judges the wide one; a table that showed the narrow one would say the opposite beside it."""
    whole = make.baseline().text
    looked = whole | {"look": {"at": 1, "of": 5, "share": 0.0625}}
    dppl = Estimate(0.1, 0.02, 0.18)
    run = run_of([make.baseline(), *(make.record(make.cell(n), text=t, dppl=dppl) for n, t in (("all", whole), ("stopped", looked)))])
    assert figure(run, "all", "Δppl").detail == "[+0.020, +0.180]"
    assert figure(run, "stopped", "Δppl").text.endswith("≈")
    wide = paid(run.record(run.cells[2]), "kld", Estimate(0.01234, 0.0119, 0.0128))
    assert figure(run, "stopped", "KLD").detail == bounds(wide, "kld") != figure(run, "all", "KLD").detail
    drawn = {point.label: point.y for point in points(run, list(run.cells), "kld")}
    assert drawn["stopped"] == wide


def test_a_lossless_control_is_exactly_zero(full):
    assert figure(full, "turbo4[identity]", "Δppl").text == figure(full, "turbo4[identity]", "KLD").text == "0 (exact)"


def test_csv_has_the_records_own_numbers(full):
    rows = {row["scheme"]: row for row in csv.DictReader(io.StringIO(summary.render(full)))}
    for record in full.records[1:]:
        for name, estimate in record.metrics.items():
            assert float(rows[record.cell.label][name]) == estimate.value
    assert "seconds" not in rows["q8_0"]


@pytest.mark.parametrize("outcome", ["oom", "crashed", "timeout", "unsupported", "inactive", "altered", "failed"])
def test_a_cell_that_is_not_ok_has_no_number_anywhere(make, run_of, outcome):
    cell = make.cell("idle")
    bare = Record(cell, outcome, "why it is so")
    told = dataclasses.replace(make.record(cell), outcome=outcome, reason=bare.reason, seconds=None)  # Record.read would refuse it
    others = run_of([make.baseline(), make.record(make.cell("good"))], [make.gate("idle")], unrun=[cell])
    run, silent = (dataclasses.replace(others, records=(*others.records, record)) for record in (told, bare))
    assert outputs(run) == outputs(silent)
    for name in ("terminal", "markdown", "page", "csv", "junit"):
        text = outputs(run)[name]
        assert outcome in text, name
        assert "why it is so" in text, name


def test_a_planned_cell_without_a_record_is_shown(make, run_of):
    texts = outputs(run_of([make.baseline(), make.record(make.cell())], unrun=[make.cell("later")]))
    for name in ("terminal", "markdown", "page", "csv", "junit"):
        assert "not run" in texts[name], name


def test_a_markdown_row_without_figures_says_what_became_of_it(make, run_of):
    run = run_of([make.baseline(), make.record(make.cell()), make.broken(make.cell("lost"))], unrun=[make.cell("later")])
    for text in (markdown.brief(run), markdown.render(run, conclude(run))):
        rows = {row[0]: row[1:] for line in text.splitlines() if (row := [part.strip() for part in line.strip("|").split("|")])}
        assert rows["lost"][0] == "*oom*"
        assert rows["later"][0] == "*not run*"
        assert not any(rows["later"][1:])
        assert len(rows["lost"]) == len(rows["q8_0"])
        assert "lost: oom: it did not fit" in text
        assert text.count("not run: in the plan, without a record") == 1


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and the text between."""

    def __init__(self, text):
        super().__init__()
        self.found, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def hostile(make, run_of):
    cell = make.cell(HOSTILE, model=HOSTILE)
    records = [
        make.baseline(model=HOSTILE),
        make.record(cell),
        make.broken(make.cell("lost", model=HOSTILE), reason=f"{HOSTILE}\x1b[31m\n\u202e"),
    ]
    return run_of(records, [make.gate("*")], run="hostile")


def test_hostile_names_stay_text_on_the_page(hostile, full):
    seen, usual = Page(outputs(hostile)["page"]), Page(outputs(full)["page"])
    assert sum(tag == "script" for tag, _ in seen.found) == sum(tag == "script" for tag, _ in usual.found) == 1
    outcomes = {"em", "strong", "select", "option"}  # other than ok are set apart, and can be chosen
    assert {tag for tag, _ in seen.found} <= {tag for tag, _ in usual.found} | outcomes
    assert HOSTILE in seen.text
    assert not any(name.startswith("on") for _, attributes in seen.found for name in attributes)
    assert "\x1b" not in "".join(seen.text)


def test_hostile_names_stay_text_in_markdown(hostile):
    text = markdown.render(hostile, conclude(hostile))
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("| ")}
    assert widths == {4, 10}  # three columns of verdicts, nine of results
    assert "<script" not in text
    assert not re.search(r"(?<!\\)[`\[]", text)


def test_hostile_names_stay_text_elsewhere(hostile):
    texts = outputs(hostile)
    rows = list(csv.DictReader(io.StringIO(texts["csv"])))
    assert rows[1]["scheme"] == rows[1]["model"] == HOSTILE
    assert "[red]" in texts["terminal"]
    assert "\x1b" not in texts["terminal"]
    assert any(case.get("name", "").startswith(HOSTILE) for case in xml(texts["junit"]).iter("testcase"))
    for name in texts.keys() - {"terminal", "markdown", "page", "csv", "junit"}:
        drawn = "".join(text for text in xml(texts[name]).itertext())
        assert HOSTILE[:20] in drawn, name


def test_the_page_needs_nothing_else(full):
    seen = Page(outputs(full)["page"])
    for tag, attributes in seen.found:
        for name in ("src", "href", "xlink:href", "action", "data", "srcset", "style"):
            value = attributes.get(name) or ""
            assert "//" not in value, (tag, name, value)
    assert ("html", {"lang": "en"}) in seen.found
    css = re.search(r"<style>(.*?)</style>", outputs(full)["page"], re.S)
    assert css
    assert not re.search(r"@import|url\(", css.group(1))
    assert "default-src 'none'" in next(a["content"] for t, a in seen.found if t == "meta" and a.get("http-equiv"))


def test_every_table_of_the_page_has_a_caption_and_scopes(full):
    text = outputs(full)["page"]
    found = re.findall(r"<table.*?</table>", text, re.S)
    assert len(found) >= 4
    for table in found:
        assert "<caption" in table
        assert all("scope=" in head for head in re.findall(r"<th\b[^>]*>", table))
    ids = [a["id"] for _, a in Page(text).found if "id" in a]
    assert len(ids) == len(set(ids))


def test_junit_counts(make, run_of):
    records = [
        make.baseline(),
        make.record(make.cell("ok")),
        make.broken(make.cell("lost")),
        make.broken(make.cell("foreign"), "unsupported"),
    ]
    run = run_of([*records, make.broken(make.cell("idle"), "inactive")], [make.gate("ok", limit=0.01), make.gate("ok", limit=0.12)])
    root = xml(junit.render(run, conclude(run)))
    counts = [[suite.get(name) for name in ("tests", "failures", "errors", "skipped")] for suite in root]
    assert counts == [["5", "1", "1", "1"], ["2", "1", "1", "0"]]


def test_the_same_records_give_the_same_bytes_in_any_order_on_disk(full, tmp_path):
    copy = tmp_path / "copy" / full.suite / full.name
    for path in sorted((p for p in full.folder.rglob("*") if p.is_file()), reverse=True):
        target = copy / path.relative_to(full.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    assert outputs(load(copy)) == outputs(full)


def test_another_process_draws_the_same_bytes(full):
    code = (
        "import sys, pathlib; from tqbench.report import figures, run; r = run.load(pathlib.Path(sys.argv[1]));"
        "sys.stdout.buffer.write(''.join(chart.svg for chart in figures.charts(r)).encode())"
    )
    drawn = subprocess.run([sys.executable, "-c", code, str(full.folder)], check=True, capture_output=True).stdout.decode()
    assert drawn == "".join(chart.svg for chart in figures.charts(full))
    assert "<text" in drawn
    assert "<dc:date>" not in drawn


def test_figures_that_are_not_numbers_are_written_and_not_drawn(make, run_of):
    run = run_of([make.baseline(), make.record(make.cell("good"))], unrun=[make.cell("odd")])
    nan = Estimate(math.nan, math.nan, math.inf)
    run = dataclasses.replace(run, records=(*run.records, make.record(make.cell("odd"), (0, 0), dppl=nan, kld=nan, ppl=nan)))
    assert "nan" in outputs(run)["terminal"]
    assert all("nan" not in chart.svg for chart in figures.charts(run))


def test_figures_name_what_they_leave_out(full, make, run_of):
    kld, dppl, _ = figures.charts(full)
    assert "turbo4[identity]" in kld.caption
    assert "grey band" in dppl.caption
    lossless = make.record(make.cell("f32"), (32, 32), kld=Estimate(0.0, 0.0, 0.0), dppl=Estimate(0.0, 0.0, 0.0))
    charts = figures.charts(run_of([make.baseline(), lossless, make.record(make.cell())], run="lossless"))
    assert "exactly 0" in charts[0].caption
    assert "f32" in charts[0].caption
    assert "f32" not in charts[0].svg


def test_several_contexts_are_drawn_against_each_other(make, run_of):
    records = [r for context in (512, 1024) for r in (make.baseline(context), make.record(make.cell(context=context)))]
    run = run_of(records, [make.gate("q8_0")])
    assert [chart.name for chart in figures.charts(run)] == [
        *("kld-bits-1", "dppl-bits-1", "ledger-1"),
        *("kld-bits-2", "dppl-bits-2", "ledger-2"),
        "kld-context-1",
    ]
    assert "context 1024" in markdown.render(run, conclude(run)).split("##")[0]  # verdicts say which


def test_two_kernels_of_one_scheme_are_told_apart(make, run_of):
    run = run_of([make.baseline(), *(make.record(make.cell("q8_0", kernel=kernel)) for kernel in ("native", "torch"))])
    assert [row.label for row in tables(run)[0].rows] == ["baseline", "q8_0 (native)", "q8_0 (torch)"]


def test_everything_is_written(full, tmp_path):
    write_results(full, conclude(full))
    path = write(full, conclude(full), tmp_path / "reports")
    assert path == tmp_path / "reports" / "suite" / "run" / "index.html"
    assert sorted(p.name for p in path.parent.iterdir()) == ["dppl-bits-1.svg", "index.html", "kld-bits-1.svg", "ledger-1.svg", "report.md"]
    assert (full.folder / "summary.csv").read_text() == summary.render(full)
    xml((full.folder / "junit.xml").read_text())


def test_names_cannot_leave_the_reports_folder(make, run_of, tmp_path):
    run = dataclasses.replace(run_of([make.baseline()]), suite="../../up", name="..")
    assert write(run, conclude(run), tmp_path / "reports").resolve().is_relative_to((tmp_path / "reports").resolve())


def test_reading_and_judging_a_run_imports_no_framework(full):
    code = (
        "import sys, pathlib; from tqbench.report import run, conclusion as c, markdown; r = run.load(pathlib.Path(sys.argv[1]));"
        "markdown.render(r, c.conclude(r)); print(sorted({'torch', 'pandas', 'matplotlib', 'jinja2', 'rich'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(full.folder)], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_the_page_s_files_are_part_of_the_package():
    from importlib.resources import files

    assert all((files("tqbench.report") / name).is_file() for name in ("page.html.j2", "page.css", "page.js"))


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_table_fits(full, width):
    assert max(map(len, on_terminal(full, width).splitlines())) <= width


def test_plan_json_is_what_the_runner_writes(full):
    plan = json.loads((full.folder / "plan.json").read_text())
    assert set(plan) == {"schema", "suite", "run", "command", "cells", "gates", "seal"}
    assert Path(full.folder).name == plan["run"]
