"""The page in a real browser: it draws, sorts, filters, prints, asks for nothing, runs nothing that a name says, and all can use it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from importlib.resources import files
from pathlib import Path

import pytest

from tqbench.core.record import Estimate
from tqbench.importers import folder
from tqbench.report import foreign, together
from tqbench.report.conclusion import conclude
from tqbench.report.run import load
from tqbench.report.write import write_pages

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results" / "reference"
SAMPLES = ROOT / "tests" / "importers" / "samples"
CHROMIUM = os.environ.get("TQBENCH_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium, or TQBENCH_CHROMIUM names one")
HOSTILE = "<script>document.title='hit'</script><img src=x onerror=alert(1)>\"'](javascript:alert(1))`{{7*7}}"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
SLOW = 180_000  # milliseconds; a busy machine is no failure


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS, timeout=SLOW)
        yield found
        found.close()


@pytest.fixture
def show(browser):
    """Opens a page and, at the end, holds it to silence: no message, no error, no dialog, no request but for itself."""
    heard, contexts = [], []

    def show(path: Path, width: int = 1280, **look: str):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, bypass_csp=True, **look))
        page = contexts[-1].new_page()
        page.set_default_timeout(SLOW)
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("dialog", lambda dialog: (heard.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: None if request.url == path.as_uri() else heard.append(request.url))
        page.goto(path.as_uri())
        return page

    yield show
    for context in contexts:
        context.close()
    assert heard == []


@pytest.fixture(scope="module")
def many(make, tmp_path_factory) -> Path:
    """A page with everything: gates, outcomes, hostile names, every task, two contexts, a second run, and other tools' results."""
    cell = {task: {"context": 512, "protocol": "strict"} | more for task, more in (("decode", {"new": 8}), ("memory", {}))}
    records = [
        make.baseline(),
        make.record(make.cell("q8_0")),
        make.record(make.cell("turbo4"), (4.25, 4.25), kld=Estimate(0.05, 0.04, 0.06), dppl=Estimate(0.3, 0.2, 0.4)),
        make.record(make.cell("turbo3"), (3.25, 3.25), kld=Estimate(0.2, 0.1, 0.3), dppl=Estimate(1.3, 1.2, 1.4)),
        make.record(make.cell(HOSTILE), (6.0, 6.0)),
        make.broken(make.cell("lost"), reason=f"{HOSTILE}\x1b[31m\n\u202e"),
        make.baseline(1024),
        make.record(make.cell("q8_0", 1024)),
        *(make.speed(make.cell(name, task=task, params=cell[task])) for task in cell for name in (None, "q8_0", HOSTILE)),
    ]
    records = [
        dataclasses.replace(r, positions=[{"from": f, "to": 2 * f, "tokens": 9, "kld": 0.01, "dnll": 0.0} for f in (1, 64)])
        for r in records
    ]
    root = tmp_path_factory.mktemp("pages")
    gates = [make.gate("q8_0"), make.gate("turbo*"), make.gate(HOSTILE), make.gate("lost")]
    other = [make.baseline(), make.record(make.cell("later")), make.speed(make.cell("q8_0", task="decode", params=cell["decode"]))]
    runs = [load(make.folder(root, records, gates, suite="many")), load(make.folder(root, other, suite="many", run="other"))]
    return write_pages([(run, conclude(run)) for run in runs], together.views(runs), root / "page", foreign.tables([imported(root)]))


def imported(root: Path) -> folder.Imports:
    """Real outputs of other tools, and one whose model has a hostile name."""
    hostile = json.loads((SAMPLES / "bench.jsonl").read_text().partition("\n")[0]) | {"model_filename": HOSTILE, "cpu_info": HOSTILE}
    (root / "hostile.jsonl").write_text(json.dumps(hostile))
    return folder.take_in(
        [*(SAMPLES / name for name in ("divergence.log", "bench.json", "lm_eval.json", "refract.json")), root / "hostile.jsonl"]
    )


@pytest.fixture(scope="module")
def sample() -> Path:
    """The committed page."""
    return ROOT / "reports" / "sample" / "index.html"


def labels(page) -> list[str]:
    return page.locator("table.main").first.locator("tbody tr:visible th").all_inner_texts()


def test_a_column_sorts_by_its_numbers_in_both_directions_by_mouse_and_keyboard(show, many) -> None:
    page = show(many)
    table = page.locator("table.main").first
    head = table.locator("th", has=page.get_by_role("button", name="KLD", exact=True))
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert [name for name in labels(page) if name in ("q8_0", "turbo4", "turbo3")] == ["q8_0", "turbo4", "turbo3"]
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert [name for name in labels(page) if name in ("q8_0", "turbo4", "turbo3")] == ["turbo3", "turbo4", "q8_0"]
    assert labels(page)[-1] in ("lost", "baseline")  # what has no figure stays last
    assert table.locator("th[aria-sort=descending]").count() == 1


def test_every_table_sorts(show, many) -> None:
    page = show(many)
    silent = page.evaluate(
        "[...document.querySelectorAll('table')].filter(t => !t.querySelector('th[aria-sort] button')).map(t => t.className)"
    )
    assert silent == []
    assert page.locator("#all-1 ~ div table").count() == 1  # everything in one table


def test_the_filter_hides_rows_everywhere_and_fades_marks(show, many) -> None:
    page = show(many)
    page.get_by_label("Filter").fill("turbo")
    assert labels(page) == ["turbo4", "turbo3"]
    assert page.locator("output").inner_text().startswith("2 of ")
    assert page.get_by_role("heading", name="Quality at context 1,024").count() == 0  # nothing of it is left
    faded = page.evaluate("[...document.querySelectorAll('figure g > title')].map(t => [t.textContent, t.parentNode.style.opacity])")
    assert {opacity for text, opacity in faded if text.startswith("turbo")} == {""}
    assert {opacity for text, opacity in faded if text.startswith("q8_0")} == {"0.12"}
    page.get_by_label("Filter").fill("")
    page.get_by_label("Outcome").select_option("oom")
    assert labels(page) == ["lost"]
    page.get_by_label("Outcome").select_option("")
    assert len(labels(page)) == 7  # six, and what the second run adds


def test_hostile_names_are_text(show, many) -> None:
    page = show(many)
    assert page.title() == "many · tqbench"
    assert page.locator("body img").count() == 0
    assert HOSTILE in labels(page)
    assert page.evaluate("document.querySelectorAll('a[href^=\"javascript\"]').length") == 0


def test_verdicts_come_first_and_in_words(show, many) -> None:
    page = show(many)
    assert page.locator(".verdict .says").first.inner_text() == "many run: A required cell did not complete: 2 fail, 1 inconclusive, 3 pass"
    first = page.locator("ul.gates li").first
    assert first.inner_text().split()[0] == "pass"
    assert "q8_0" in first.inner_text()
    assert page.locator(".verdict .says").nth(1).inner_text().endswith("Nothing was judged, there are no gates")


def test_speeds_of_two_runs_share_no_table(show, many) -> None:
    page = show(many)
    assert "later" in labels(page)
    assert page.get_by_text("they were not timed in turn").count() == 1
    assert page.locator("h2", has_text="Decode tg8 @ d512").count() == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_are_legible_and_usable_by_everybody(show, many, scheme: str) -> None:
    """axe-core: nothing serious, which includes contrast, names, roles and the reach of the keyboard."""
    page = show(many, 1280 if scheme == "light" else 390, color_scheme=scheme)
    ink, paper = page.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    assert (sum(map(int, paper[4:-1].split(","))) > 3 * 128) == (scheme == "light")
    assert page.evaluate("getComputedStyle(document.querySelector('figure svg')).color") == ink  # figures take the page's ink
    page.evaluate((files("axe_playwright_python") / "axe.min.js").read_text())
    found = page.evaluate("axe.run().then(r => r.violations.map(v => [v.id, v.impact, v.nodes[0].html]))")
    assert [violation for violation in found if violation[1] in ("serious", "critical")] == []


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_scrolls_up_and_down_only(show, many, sample, width: int) -> None:
    for path in (many, sample):
        page = show(path, width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_wide_table_scrolls_in_its_own_box_and_shows_that_it_does(show, sample) -> None:
    """To its last column, beside which the names of schemes stay."""
    for path in (sample, sample.parent / "long_ctx_small" / "index.html"):
        page = show(path, 390)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate("[...document.querySelectorAll('table')].filter(t => !t.closest('.scroll')).length") == 0
        box = page.locator(".scroll:has(table.main)").first
        assert box.evaluate("e => getComputedStyle(e).backgroundImage").count("gradient") == 2
        assert box.evaluate("e => getComputedStyle(e).backgroundAttachment") == "local, scroll"  # its cover moves with the table
        wide, last, first = box.evaluate(
            "e => { const wide = e.scrollWidth > e.clientWidth; e.scrollLeft = e.scrollWidth;"
            "const at = s => e.querySelector(s).getBoundingClientRect();"
            "return [wide, at('thead th:last-child').right, at('tbody th').left] }"
        )
        assert wide
        assert last <= 390
        assert first >= 0


def test_paper_is_white_and_everything_on_it_is_open(show, many) -> None:
    page = show(many, color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf().startswith(b"%PDF")
    assert page.locator("details:not([open])").count() == 0
    assert not page.locator("form.filter").is_visible()


def test_the_sample_draws(show, sample) -> None:
    page = show(sample)
    boxes = page.evaluate(
        "[...document.querySelectorAll('figure svg')].map(s => { const b = s.getBoundingClientRect(); return [b.width, b.height] })"
    )
    assert len(boxes) >= 3
    assert all(width > 300 and height > 100 for width, height in boxes)
    assert sample.stat().st_size < 2_000_000


def test_names_among_a_hundred_schemes_do_not_overlap(browser, tmp_path) -> None:
    """Measured by the browser, not by what the placement believes."""
    from tqbench.report import figures

    chart = next(chart for chart in figures.charts(load(REFERENCE / "schemes-cpu")) if chart.name == "kld-bits-1")
    (tmp_path / "chart.html").write_text(f"<!doctype html><body style='margin:0'>{chart.svg[chart.svg.index('<svg') :]}")
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(SLOW)
    page.goto((tmp_path / "chart.html").as_uri())
    boxes = page.evaluate(
        "[...document.querySelectorAll('svg text')].filter(t => t.style.fontSize === '8px')"
        ".map(t => { const b = t.getBoundingClientRect(); return [t.textContent, b.left, b.top + 2, b.right, b.bottom - 2] })"
    )
    page.close()
    assert len(boxes) > 10
    over = [(a[0], b[0]) for i, a in enumerate(boxes) for b in boxes[:i] if a[1] < b[3] and b[1] < a[3] and a[2] < b[4] and b[2] < a[4]]
    assert over == []
