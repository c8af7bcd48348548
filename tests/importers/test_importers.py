"""What is read of real outputs, what is refused and in which line, and that none of it is ever among our own figures."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from tqbench.__main__ import main
from tqbench.cli import complete
from tqbench.core.errors import ConfigError, EditedError
from tqbench.importers import folder, read
from tqbench.importers.row import FACTS, Row
from tqbench.report import foreign

SAMPLES = Path(__file__).parent / "samples"
REFERENCE = Path(__file__).parents[2] / "results" / "reference" / "quickstart-cpu"
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
# As llama-perplexity printed it before logs had prefixes: by the format.
OLD = """build: 4585 (ec7f3ac9) with cc (Debian 12.2.0-14) 12.2.0 for x86_64-linux-gnu
llama_model_loader: loaded meta data with 33 key-value pairs and 272 tensors from models\\tiny.gguf (version GGUF V3 (latest))
llama_model_loader: - kv  21:               tokenizer.ggml.add_bos_token bool             = true
llama_kv_cache_init: kv_size = 2048, offload = 1
llama_new_context_with_model: KV self size  =   45.00 MiB, K (q8_0):   22.50 MiB, V (q5_1):   22.50 MiB
perplexity: tokenizing the input ..
perplexity: calculating perplexity over 3 chunks, n_ctx=512, batch_size=2048, n_seq=4
perplexity: 1.23 seconds per pass - ETA 0.02 minutes
[1]13.4321,[2]14.1000,[3]13.9000,
Final estimate: PPL = 13.9000 +/- 0.34210
"""


def rows(name: str) -> list[Row]:
    return read(SAMPLES / name)


def written(tmp_path: Path, text: str | bytes, name: str = "file.log") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_perplexity() -> None:
    (row,) = rows("perplexity.log")
    assert (row.tool, row.source) == ("llama-perplexity", "perplexity.log:10")
    assert row.facts == {"chunks": 4, "context": 128}
    assert (row.figures["ppl"].value, row.figures["ppl"].error) == (49.8983, 10.59148)
    assert set(row.unknown) == set(FACTS) - set(row.facts)
    assert "second half" in row.recipe


def test_a_divergence_with_what_its_log_says() -> None:
    (row,) = rows("divergence.log")
    known = {"model": MODEL, "cache_k": "q8_0", "cache_v": "q8_0", "context": 128, "chunks": 4, "bos": False}
    assert row.facts == known | {"K rotated": True, "V rotated": True}
    assert set(row.unknown) == {"version", "corpus", "stride"}
    found = {key: (figure.value, figure.error) for key, figure in row.figures.items()}
    assert found["kld"] == (0.004386, 0.000219)
    assert found["kld_p999"] == (0.023402, None)
    assert found["dppl"] == (-0.461534, 0.298040)
    assert found["top1"] == pytest.approx((0.98413, 0.00789))
    assert found["rms_dp"] == pytest.approx((0.01285, 0.00107))
    assert len(found) == 12


def test_a_strided_run_has_its_last_running_value() -> None:
    (row,) = rows("strided.log")
    assert (row.figures["ppl"].value, row.figures["ppl"].error) == (78.9477, None)
    assert (row.facts["stride"], row.facts["context"], row.facts["chunks"]) == (64, 256, 3)


def test_an_older_log_and_two_runs_in_one(tmp_path: Path) -> None:
    path = written(tmp_path, OLD + OLD.replace("q8_0", "f16").replace("13.9000", "12.5000"))
    first, second = read(path)
    known = {"version": "4585 (ec7f3ac9)", "model": "tiny.gguf", "cache_k": "q8_0", "cache_v": "q5_1"}
    assert first.facts == known | {"context": 512, "chunks": 3, "bos": True}
    assert (first.label, second.label) == ("q8_0 / q5_1", "f16 / q5_1")
    assert [row.figures["ppl"].value for row in (first, second)] == [13.9, 12.5]
    assert second.source == "file.log:20"


def test_a_log_as_powershell_writes_it(tmp_path: Path) -> None:
    (row,) = read(written(tmp_path, OLD.replace("\n", "\r\n").encode("utf-16")))
    assert row.figures["ppl"].value == 13.9


def test_nan_is_no_number(tmp_path: Path) -> None:
    text = OLD.replace("[3]13.9000", "[3]nan").replace("13.9000 +/- 0.34210", "nan +/- nan")
    (row,) = read(written(tmp_path, text))
    assert (row.figures["ppl"].value, row.figures["ppl"].why) == (None, "the tool printed nan")


@pytest.mark.parametrize("name", ["bench.json", "bench.jsonl", "bench.csv", "bench.txt"])
def test_speeds_in_every_form(name: str) -> None:
    found = rows(name)
    tests = [f"{test}{depth}" for depth in ("", " @ d16") for test in ("pp8", "tg4")]
    assert [row.label.partition(" · ")[0] for row in found] == tests * 2
    assert [row.facts["cache_k"] for row in found] == ["f16"] * 4 + ["q8_0"] * 4
    assert all(0 < row.figures["tps"].value < 1000 and row.figures["tps"].error > 0 for row in found)
    assert {row.facts["version"] for row in found} == {"0c1e570 (1)"}
    if name == "bench.txt":
        assert "default" in found[0].unknown["cache_v"]
    else:
        assert {(row.facts["model"], row.facts["cache_v"]) for row in found} == {(MODEL, "f16")}


def test_scores_of_tasks() -> None:
    found = {row.label: row for row in rows("lm_eval.json")}
    assert {label: row.figures["score"].value for label, row in found.items()} == {
        "tiny_choice · acc": 1.0,
        "tiny_choice · acc_norm": 1.0,
        "tiny_ppl · word_perplexity": 606.9052469238129,
        "tiny_ppl · byte_perplexity": 5.183046366028286,
        "tiny_ppl · bits_per_byte": 2.3738002997113976,
    }
    row = found["tiny_ppl · word_perplexity"]
    assert row.figures["score"].error is None
    assert found["tiny_choice · acc"].figures["score"].error == 0.0
    assert row.facts["version"] == "0.4.13"
    assert (row.facts["documents"], row.facts["shots"], row.facts["higher is better"]) == (4, 0, False)
    assert "no cache" in row.caveat


def test_a_report_of_refract() -> None:
    (row,) = rows("refract.json")
    assert (row.facts["cache_k"], row.facts["cache_v"]) == ("q8_0", "q4_0")
    assert row.facts["candidate's other settings"] == "attn_rot_v=0"
    assert row.facts["engine"] == "llamacpp (0123abc)"
    scores = [62.5, 100 * math.exp(-0.01875), 100.0, 81.25]
    assert row.figures["refract"].value == pytest.approx(4 / sum(1 / score for score in scores))
    assert (row.figures["kld"].value, row.figures["rms_dp"].value, row.figures["top1"].value) == pytest.approx((0.01875, 0.0225, 0.935))


def test_an_axis_that_was_skipped_has_no_number(tmp_path: Path) -> None:
    """REFRACT leaves a perfect score in the place of what it did not measure."""
    data = json.loads((SAMPLES / "refract.json").read_text())
    data["axes"]["kld"] |= {"score": None, "mean_kld": 0.0, "ppl": None, "skipped": True}
    data["composite_detail"]["kld_score"] = None
    data["composite"] = 3 / (1 / 62.5 + 1 / 100 + 1 / 81.25)
    (row,) = read(written(tmp_path, json.dumps(data), "report.json"))
    assert {row.figures[key].why for key in ("refract_kld", "kld", "ppl", "rms_dp", "top1")} == {"this axis was skipped"}
    assert "context" in row.unknown


DAMAGED: dict[str, tuple[str, str, str, str]] = {  # sample, what in it, becomes what, what is said
    "a result that is another": ("perplexity.log", "PPL = 49.8983", "PPL = 48.8983", r":10: the result 48.8983 is not the value after"),
    "a chunk that is gone": ("perplexity.log", "[3]90.8168,", "", r":9: chunk 4 follows chunk 2"),
    "the last chunks are gone": ("perplexity.log", ",[4]49.8983", "", r":10: the result of 4 chunks, of which 3 are there"),
    "cut off before the result": (
        "perplexity.log",
        "0.34.679.335 I Final estimate",
        "0.34",
        r":\d+: the log ends before the result: no `Final",
    ),
    "a failure": ("perplexity.log", "perplexity: tokenizing", "decode: failed to decode the batch\n", r":5: .* says here that it failed"),
    "a statistic that is gone": ("divergence.log", "Median  KLD", "Medial  KLD", r":\d+: the log ends before the result: no 'Median  KLD'"),
    "a digit of the perplexity": ("divergence.log", "48.882333", "47.882333", r":\d+: the perplexity 47.882333 is not the value after"),
    "a digit of the base": ("divergence.log", "49.343867", "49.353867", r":\d+: the log ratio -0.009397 is not that of"),
    "a strided run cut off": ("strided.log", ",[3]78.9477", "", r":\d+: the log ends after 2 of 3 chunks"),
    "a speed above its samples": (
        "bench.jsonl",
        '"avg_ts": 16.2',
        '"avg_ts": 17.2',
        r":1: avg_ts must be the mean of its samples, 16.2374,",
    ),
    "a speed in words": ("bench.json", '"avg_ts": 1', '"avg_ts": "fast", "x": 1', r':43: 0.avg_ts must be a number, is "fast"'),
    "a cache type that is gone": ("bench.json", '"type_k": "f16",', "", r":2: 0.type_k must be a text, it is missing"),
    "half a line": ("bench.jsonl", '"type_v": "f16", ', '"type_v": ', r":1: this is not JSON"),
    "a field too many": ("bench.csv", '"0c1e570","1"', '"0c1e570","1","1"', r":2: 43 fields under 42 columns"),
    "a line that ends in a field": ("bench.csv", '"0.298282"', '"0.298', r":2: this is not CSV: unexpected end of data"),
    "a test that is none": ("bench.txt", "            pp8 |", "            xx8 |", r":3: the test must be like `pp512`"),
    "a score in words": (
        "lm_eval.json",
        '"acc,none": 1.0',
        '"acc,none": "high"',
        r':7: results.tiny_choice.acc,none must be a number, is "high"',
    ),
    "a key twice": ("lm_eval.json", '"acc,none": 1.0', '"acc,none": 1.0,\n"acc,none": 0.9', r":8: 'acc,none' stands twice"),
    "a composite that is another": (
        "refract.json",
        '"composite": 8',
        '"composite": 9',
        r":20: composite must be the harmonic mean of its axes, 8",
    ),
    "a divergence that is another": (
        "refract.json",
        '"mean_kld": 0.01875',
        '"mean_kld": 0.02',
        r":71: axes.kld.mean_kld must be what its score",
    ),
    "a schema to come": ("refract.json", "report.v0.3.1", "report.v1.0", r":2: schema must be one of refract.report.v0.1"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_damaged_is_refused_with_its_line(case: str, tmp_path: Path) -> None:
    name, old, new, said = DAMAGED[case]
    text = (SAMPLES / name).read_text()
    assert old in text
    with pytest.raises(ConfigError, match=f"^{re.escape(name)}{said}"):
        read(written(tmp_path, text.replace(old, new, 1), name))


def test_standard_output_alone_has_no_result(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"file.log:2: the log ends before the result: no `Final estimate`, .*on standard error"):
        read(written(tmp_path, "[1]13.4321,[2]14.1000,\n"))


def test_every_problem_of_every_file_is_said_and_nothing_is_written(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "hello", "a.txt")
    written(tmp_path, OLD.replace("PPL = 13", "PPL = 12"), "b.log")
    assert main(["import", "a.txt", "b.log", "c.log", str(SAMPLES / "refract.json")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in said] == ["a.txt", "b.log", "c.log"]
    assert not (tmp_path / "results").exists()


def test_a_tool_that_is_said_is_believed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--from: unknown tool 'llama'; did you mean 'llama-bench'"):
        folder.take_in([SAMPLES / "bench.json"], "llama")
    with pytest.raises(ConfigError, match=r"bench.json: .*must be an object|bench.json:1 must be an object"):
        folder.take_in([SAMPLES / "bench.json"], "refract")
    assert folder.take_in([SAMPLES / "bench.json"], "llama-bench").rows


def test_a_folder_is_sealed_and_keeps_to_its_files(tmp_path: Path) -> None:
    imports = folder.take_in([SAMPLES / "refract.json"])
    path = folder.write(imports, tmp_path / "mine")
    folder.write(imports, tmp_path / "mine")  # the same file again
    with pytest.raises(ConfigError, match="holds rows of other files already"):
        folder.write(folder.take_in([SAMPLES / "bench.json"]), tmp_path / "mine")
    path.write_text(path.read_text().replace("0.01875", "0.00875"))
    with pytest.raises(EditedError, match="changed after they were imported"):
        folder.load(tmp_path / "mine")


def test_one_page_shows_all_and_mixes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("divergence.log", "bench.jsonl", "lm_eval.json", "refract.json")
    assert main(["import", *(str(SAMPLES / name) for name in names), "-o", "results/imported/all"]) == 0
    capsys.readouterr()
    assert main(["report", str(REFERENCE), "imported/all", "--page", "page", "--bundle", "out.zip"]) == 0
    text, html = (tmp_path / "page" / "report.md").read_text(), (tmp_path / "page" / "index.html").read_text()
    own, others = text.split("## Measured by other tools")
    for tool in ("llama-perplexity", "llama-bench", "lm-eval", "REFRACT"):
        assert f"· {tool}" not in own
        assert re.search(rf"^### \d\. {tool} · ", others, re.M)
        assert re.search(rf"<h3>\d\. {tool} · ", html)
    assert "not comparable with any other table" in others
    assert "| turbo3 |" in own
    assert "turbo3" not in others
    assert others.count("Not comparable with tables of tqbench: ") == 4
    shown = capsys.readouterr().out
    assert shown.index("turbo3") < shown.index("Measured by other tools")
    assert main(["runs"]) == 0
    assert re.search(r"^imported +all +1 of llama-perplexity, 8 of llama-bench, 5 of lm-eval, 1 of REFRACT$", capsys.readouterr().out, re.M)
    assert complete.reported("imp") == ["imported/all"]
    assert complete.runs("imp") == []
    assert main(["report", "imported/all", "--format", "md"]) == 0
    assert capsys.readouterr().out.strip() in text
    assert main(["report", "imported/all", "--format", "csv"]) == 0
    assert "REFRACT,q8_0 / q4_0" in capsys.readouterr().out
    assert main(["report", "imported/all", "--format", "latex"]) == 0
    assert capsys.readouterr().out.count(r"\begin{tabular}") == 4


@pytest.mark.parametrize(
    ("old", "new", "tables"),
    [
        ("q8_0", "q4_0", 1),
        ("n_ctx=512", "n_ctx=256", 2),
        ("tiny.gguf", "other.gguf", 2),
        ("= true", "= false", 2),
        ("build: 4585", "build: 4586", 1),
    ],
)
def test_only_rows_of_one_recipe_share_a_table(old: str, new: str, tables: int, tmp_path: Path) -> None:
    """Other caches and versions are what one compares; another context, model or BOS is another measurement."""
    found = foreign.tables([folder.take_in([written(tmp_path, OLD + OLD.replace(old, new))])])
    assert len(found) == tables
    assert sum(len(table.grid.rows) for table in found) == 2


@pytest.mark.parametrize("command", [["gate"], ["compare", str(REFERENCE)]])
def test_no_gate_judges_it_and_nothing_is_compared_with_it(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    folder.write(folder.take_in([SAMPLES / "refract.json"]), Path("results/imported/mine"))
    assert main([*command, "imported/mine"]) == 2
    assert "was measured by other tools" in capsys.readouterr().err
