"""Two runs held against each other: what is subtracted, what is refused and why, and what differs."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from tqbench.core.errors import ConfigError
from tqbench.core.record import Estimate
from tqbench.report import against, compare, gate
from tqbench.report.fail_on import gates
from tqbench.report.knobs import permitted
from tqbench.report.run import load

PARAMS = {"recipe": "stream", "context": 64, "tokens": 4096, "warmup": 0, "chunk": 64}  # 64 windows of 64
SCORED = 4096
RNG = np.random.default_rng(0)
NLL = RNG.gamma(2, 1.5, SCORED)
NOISE = RNG.normal(0, 0.01, SCORED)


@pytest.fixture
def measured(make, write_run):
    """Writes a run of the baseline and schemes with these per-token scores; `keep`: whether the scores stay beside the records."""

    def write(run, schemes, *, keep=True, environment=None, **changes):
        text = make.baseline().text | {"scored": SCORED, **changes.pop("text", {})}
        records = []
        for name, nll in {None: NLL, **schemes}.items():
            scheme = {"name": name, "k": changes["k"], "v": {"codec": "block"}} if name and "k" in changes else name
            cell = make.cell(scheme, params=PARAMS | changes.get("params", {}), kernel=changes.get("kernel", "auto") if name else "auto")
            cell = dataclasses.replace(cell, dtype=changes.get("dtype", cell.dtype))
            ppl, base = float(np.exp(nll.mean())), float(np.exp(NLL.mean()))
            dppl = ppl - base
            metrics = {"ppl": Estimate(ppl), "base_ppl": Estimate(base), "dppl": Estimate(dppl, dppl - 0.02, dppl + 0.02)}
            ratio = float(np.log(ppl / base))
            metrics["ln_ratio"] = Estimate(ratio, ratio - 1e-3, ratio + 1e-3)
            record = make.record(cell, text=text, **metrics) if name else dataclasses.replace(make.baseline(ppl=base), cell=cell, text=text)
            model = record.model | {"dtype": cell.dtype} | changes.get("model", {})
            records.append(dataclasses.replace(record, model=model, fingerprint=f"{hash(nll.tobytes()):x}"))
        folder = write_run(records, changes.get("gates", ()), run=run)
        for record, nll in zip(records, [NLL, *schemes.values()], strict=True):
            if keep:
                np.save(folder / "cells" / record.cell.key / "nll.npy", nll.astype(np.float32))
        (folder / "environment.json").write_text(json.dumps({"cpu": "a cpu", "code": "1234"} | (environment or {})))
        return load(folder)

    return write


def one(first, other, chosen=(None, None), allow=frozenset()):
    """The pair of the schemes, without the baselines."""
    return next(pair for pair in compare.pairs(first, other, chosen, allow) if pair.cell.scheme)


def test_tokens_are_paired(measured):
    a, b = measured("a", {"q8_0": NLL + NOISE}), measured("b", {"q8_0": NLL + NOISE + 0.05})
    pair = one(a, b)
    assert (pair.how, pair.tokens) == ("paired", SCORED)
    assert pair.metrics["ln_ratio"].value == pytest.approx(0.05, abs=1e-6)
    low, high = pair.metrics["ln_ratio"].ends
    assert high - low < 1e-6  # the same shift on every token: two intervals of ±10 % would never have shown it
    assert pair.metrics["dppl"].value == pytest.approx(np.exp((NLL + NOISE).mean()) * np.expm1(0.05), rel=1e-5)


def test_what_only_wobbles_is_indistinguishable(measured):
    a, b = measured("a", {"q8_0": NLL + NOISE}), measured("b", {"q8_0": NLL + NOISE[::-1]})
    pair = one(a, b)
    low, high = pair.metrics["dppl"].ends
    assert low < 0 < high
    (comparison,) = compare.compare((a, None), [(b, None)])
    (row,) = [row for section in comparison.sections() for row in section.rows if row[0] == "q8_0" and len(row) == len(compare.QUALITY)]
    assert row[-1] == "indistinguishable"


def test_an_interval_after_a_look_is_shown_as_wide_as_its_look_pays_for(measured):
    look = {"look": {"at": 1, "of": 5, "share": 0.0625}}
    a, b, stopped = (
        measured(run, {"q8_0": NLL + noise}, text=text) for run, noise, text in (("a", NOISE, {}), ("b", 0, {}), ("c", 0, look))
    )
    shown = []
    for other in (b, stopped):
        (comparison,) = compare.compare((a, None), [(other, None)])
        rows = [row for section in comparison.sections() for row in section.rows if row[0] == "q8_0" and len(row) == len(compare.QUALITY)]
        shown.append([float(x.replace("−", "-")) for x in rows[0][4].strip("[]").split(", ")])
    (low, high), (low2, high2) = shown
    assert high2 - low2 > 1.3 * (high - low)


def test_equal_fingerprints_need_no_scores(measured):
    a, b = (measured(run, {"q8_0": NLL + NOISE}, keep=False) for run in "ab")
    pair = one(a, b)
    assert (pair.how, pair.metrics["dppl"]) == ("equal", Estimate(0.0, 0.0, 0.0))


def test_without_scores_two_costs_are_subtracted_with_all_their_doubt(measured):
    a, b = measured("a", {"q8_0": NLL + NOISE}, keep=False), measured("b", {"q8_0": NLL + NOISE + 0.05})
    pair = one(a, b)
    wanted = float(np.exp((NLL + NOISE).mean()) * np.expm1(0.05))
    assert pair.how == "unpaired"
    assert pair.metrics["dppl"].value == pytest.approx(wanted)
    assert pair.metrics["dppl"].ends == pytest.approx((wanted - 0.04, wanted + 0.04))


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("text", {"text": {"sha256": "77" * 32}}),
        ("token ids", {"text": {"ids_sha256": "77" * 32}}),
        ("protocol", {"text": {"protocol": "deploy"}}),
        ("context", {"params": {"context": 128}}),
        ("warm-up", {"params": {"warmup": 8}}),
        ("recipe", {"params": {"recipe": "llamacpp"}}),
        ("scored tokens", {"text": {"scored": 2048}}),
        ("dtype", {"dtype": "bfloat16"}),
        ("model weights", {"model": {"weights": "others"}}),
        ("model vocab", {"model": {"vocab": 7}}),
    ],
)
def test_what_is_not_comparable_is_refused_with_the_key(measured, key, changes):
    a, b = measured("a", {"q8_0": NLL + NOISE}), measured("b", {"q8_0": NLL + NOISE}, keep=False, **changes)
    pair = one(a, b)
    assert (pair.how, pair.metrics) == ("refused", None)
    assert f"{key} " in pair.why
    assert next(knob.kind for knob in pair.knobs if knob.key == key) == "fatal"


def test_the_same_name_for_another_scheme_is_refused_and_asking_for_it_is_not(measured):
    a, c = measured("a", {"q8_0": NLL + NOISE}), measured("c", {"q8_0": NLL + NOISE}, k={"codec": "block", "bits": 4})
    assert one(a, c).why == "scheme k.bits – → 4"
    b = measured("b", {"q8_0": NLL + NOISE, "turbo4": NLL + 2 * NOISE})
    assert one(b, b, ("q8_0", "turbo4")).how == "paired"


def test_schemes_that_were_named_are_told_apart_by_what_they_do(make, run_of):
    mine, theirs = (
        {"name": name, "k": {"codec": "codebook", "bits": bits}, "v": {"codec": "codebook", "bits": 3, **more}}
        for name, bits, more in (("turbo3", 3, {}), ("mine", 8, {"window": 64}))
    )
    run = run_of([make.baseline(), make.record(make.cell(mine), (3.25, 3.25)), make.record(make.cell(theirs), (8.125, 3.25))])
    (comparison,) = compare.compare((run, "turbo3"), [(run, "mine")])
    (table,) = [section for section in comparison.sections() if section.title == "What differs"]
    assert table.rows == (
        ("asked", "bits per value of K", "3.25", "8.125", "all"),
        ("asked", "scheme k.bits", "3", "8", "all"),
        ("asked", "scheme v.window", "–", "64", "all"),
        ("harmless", "scheme's name", "turbo3", "mine", "all"),
    )
    assert table.notes[0].startswith("asked: how the schemes that were named differ; ")


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("machine", {"environment": {"cpu": "another"}}),
        ("code", {"environment": {"code": "5678"}}),
        ("version of torch", {"environment": {"versions": {"torch": "9"}}}),
        ("kernel", {"kernel": "torch"}),
        ("chunk", {"params": {"chunk": 32}}),
    ],
)
def test_what_may_explain_a_difference_is_a_warning(measured, key, changes):
    a, b = measured("a", {"q8_0": NLL + NOISE}), measured("b", {"q8_0": NLL + NOISE}, **changes)
    pair = one(a, b)
    assert pair.how == "equal"
    assert next(knob.kind for knob in pair.knobs if knob.key == key) == "warning"
    assert next(knob.kind for knob in pair.knobs if knob.key == "run") == "harmless"


def test_weights_of_the_same_file_are_the_same_however_they_are_described(measured):
    a, b, c = (
        measured(run, {"q8_0": NLL + NOISE}, model={"weights": said})
        for run, said in (
            ("a", "tiny.gguf (sha256 0123456789abcdef), dequantized on load"),
            ("b", "Q4_1 (2 Q4_1), dequantized on load from tiny.gguf (sha256 0123456789abcdef)"),
            ("c", "Q4_1 (2 Q4_1), dequantized on load from tiny.gguf (sha256 fedcba9876543210)"),
        )
    )
    pair = one(a, b)
    assert pair.how == "equal"
    assert next(knob.kind for knob in pair.knobs if knob.key == "weights as described") == "harmless"
    assert one(b, c).why == "model weights sha256 0123456789abcdef → sha256 fedcba9876543210"


def test_a_fatal_key_can_be_allowed_unless_nothing_could_be_subtracted_then(measured):
    a, b = measured("a", {"q8_0": NLL + NOISE}), measured("b", {"q8_0": NLL + NOISE}, dtype="bfloat16")
    assert one(a, b, allow=permitted(["dtype"])).how == "equal"
    with pytest.raises(ConfigError, match="--allow: unknown key 'token ids'"):
        permitted(["token ids"])


def test_scores_of_another_record_are_refused(measured):
    a, b = measured("a", {"q8_0": NLL + NOISE}), measured("b", {"q8_0": NLL + NOISE + 0.05})
    path = b.folder / "cells" / b.cells[1].key / "nll.npy"
    np.save(path, (NLL + NOISE).astype(np.float32))
    assert "nll.npy gives a perplexity of" in one(a, b).why
    np.save(path, NLL[:100].astype(np.float32))
    assert "nll.npy holds 100 scores, the record has 4096" in one(a, b).why


def test_cells_that_one_run_lacks_are_named(measured):
    a, b = measured("a", {"q8_0": NLL + NOISE}), measured("b", {"turbo4": NLL + NOISE})
    found = {pair.cell.label: pair.why for pair in compare.pairs(a, b)}
    assert found == {"baseline": "", "turbo4": "only suite/b has it", "q8_0": "only suite/a has it"}


def test_why_cells_are_not_comparable_fits_in_a_pipe(measured, capsys):
    from tqbench.cli import table

    a, b = measured("a", {"q8_0": NLL}), measured("b", {f"scheme_of_many_{i}": NLL for i in range(20)})
    (comparison,) = compare.compare((a, None), [(b, None)])
    (section,) = [section for section in comparison.sections() if section.title == "Not comparable"]
    table.show(section.title, section.columns, section.rows, section.widest)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 120
    assert all(f"scheme_of_many_{i}" in out for i in range(20))


def test_contexts_find_their_like(measured):
    a = measured("a", {"q8_0": NLL + NOISE})
    long = [dataclasses.replace(cell, params=cell.params | {"context": 128}) for cell in a.cells]
    both = dataclasses.replace(a, cells=(*long, *a.cells))
    assert [pair.how for pair in compare.pairs(a, both) if pair.first and pair.other] == ["equal", "equal"]
    assert [pair.how for pair in compare.pairs(both, a)] == ["equal", "equal", "refused", "refused"]


def test_speeds_are_side_by_side_and_not_compared_across_machines(make, run_of):
    cell = make.cell("q8_0", task="decode", params={"context": 512, "new": 8, "repetitions": 3, "protocol": "strict"})
    memory = make.cell("q8_0", task="memory", params={"context": 512, "protocol": "strict"})
    a, b = (
        run_of([make.speed(cell, decode_ratio=Estimate(ratio, ratio - 0.01, ratio + 0.01)), make.speed(memory)], run=run)
        for run, ratio in (("a", 0.75), ("b", 0.95))
    )
    far = dataclasses.replace(b, environment={"cpu": "another"})
    says = []
    for other in (b, far):
        (comparison,) = compare.compare((a, None), [(other, None)])
        (table,) = [section for section in comparison.sections() if section.title.startswith("Speed")]
        says.append([row[-1] for row in table.rows])
        assert table.notes == (compare.UNPAIRED_SPEED,)
    assert says[0] == ["intervals lie apart: higher, unpaired", "intervals overlap, unpaired", "intervals overlap, unpaired", "equal"]
    assert says[1] == ["intervals lie apart: higher, unpaired", *["not compared: another machine"] * 2, "equal"]


def stored(make, run_of, run, coder="zstd", level=3, asked=None, ratio=4.72):
    params = {"context": 1024, "entropy": coder, "level": asked, "repetitions": 3, "protocol": "strict"}
    record = make.stored(make.cell("q8_0", task="storage", params=params), stored_ratio=Estimate(ratio))
    storage = record.storage | {"coder": {"name": coder, "level": level, "package": "a package"}}
    return run_of([dataclasses.replace(record, storage=storage)], run=run)


def test_storage_is_side_by_side(make, run_of):
    a, b = (stored(make, run_of, run, ratio=ratio, asked=asked) for run, ratio, asked in (("a", 4.0, None), ("b", 5.0, 3)))
    (comparison,) = compare.compare((a, None), [(b, None)])
    (table,) = [section for section in comparison.sections() if "side by side" in section.title]
    assert {row[1]: row[-1] for row in table.rows} == {
        "smaller than f16": "+25.00%",
        **dict.fromkeys(("entropy stage", "worst cosine of K", "worst cosine of V"), "equal"),
        **dict.fromkeys(
            ("first token against computing anew", "first token from a file", "save", "load"), "no interval: nothing can be said"
        ),
    }
    assert comparison.compared == 1


@pytest.mark.parametrize(("key", "change"), [("entropy", {"coder": "ans", "level": None}), ("level", {"level": 9, "asked": 9})])
def test_another_coder_is_another_measurement(make, run_of, key, change):
    a, b = stored(make, run_of, "a"), stored(make, run_of, "b", **change)
    pair = one(a, b)
    assert pair.how == "refused"
    assert key in [knob.key for knob in pair.knobs if knob.kind == "fatal"]
    assert one(a, b, allow=permitted(["entropy", "level"])).how == "unpaired"


def test_a_cell_of_which_nothing_is_shown_is_not_called_comparable(make, run_of):
    cell = make.cell("q8_0", task="memory", params={"context": 512, "protocol": "strict"})
    a, b = (run_of([dataclasses.replace(make.speed(cell), metrics={})], run=run) for run in "ab")
    (comparison,) = compare.compare((a, None), [(b, None)])
    assert compare.heading(comparison).endswith("0 of 1 cells comparable")


@pytest.mark.parametrize(
    ("half", "floor", "says"),
    [(0.001, 0.05, "≤ floor (0.050)"), (0.1, 0.05, "higher by less than the floor (0.050)"), (0.001, 0.01, "higher")],
)
def test_below_the_floor_is_only_what_reaches_nowhere_beyond_it(measured, half, floor, says):
    a, b = (measured(run, {"q8_0": NLL}) for run in "ab")
    (pair,) = [p for p in compare.pairs(a, b) if p.cell.scheme]
    dppl = Estimate(0.02, 0.01, 0.02 + half)
    assert compare._says(dataclasses.replace(pair, how="paired", floor=floor), dppl) == says


def test_markdown_says_the_same_and_names_stay_text(measured):
    a, b = (measured(run, {"<b>|x": NLL + shift}) for run, shift in (("a", 0.01), ("b", 0.02)))
    text = compare.render(compare.compare((a, None), [(b, None)]))
    assert "## suite/b against suite/a: 2 of 2 cells comparable" in text
    assert "| &lt;b&gt;\\|x | " in text
    assert "<b>" not in text
    assert "| harmless | run | a | b | all |" in text


@pytest.mark.parametrize(("shift", "status"), [(0.0005, "pass"), (0.05, "fail"), (-0.05, "fail")])
def test_a_run_is_gated_against_a_reference(make, measured, shift, status):
    old, new = measured("old", {"q8_0": NLL + NOISE}), measured("new", {"q8_0": NLL + NOISE + shift}, gates=[make.gate("q8_0", limit=0.2)])
    (found,) = gate.judge(dataclasses.replace(new, gates=()), (), against.judgements(new, old))
    assert (found.status, found.against) == (status, "suite/old")
    assert "Δppl against suite/old (4,096 tokens paired)" in found.reason


def test_what_cannot_be_held_against_the_reference_does_not_pass(make, measured):
    limits = [make.gate("q8_0", limit=0.03)]
    old, other = measured("old", {"q8_0": NLL + NOISE}), measured("other", {"q8_0": NLL + NOISE}, text={"ids_sha256": "77" * 32})
    new = measured("new", {"q8_0": NLL + NOISE + 0.0001}, keep=False, gates=limits)
    (found,) = against.judgements(new, other)
    assert (found.status, gate.exit_code(new, [found])) == ("fail", 1)
    assert found.reason.startswith("not comparable with suite/other because token ids 777777777777 → ")
    (open_,) = against.judgements(new, old)
    unclear = open_.verdict(1)
    assert unclear.status == "inconclusive"
    assert unclear.reason.endswith("with nll.npy beside the records of both runs it would be paired token by token")


def test_controls_and_other_metrics_are_not_held_against_a_reference(make, measured):
    limits = [make.gate("q8_0", expect="fail"), make.gate("q8_0", "kld")]
    old, new = measured("old", {"q8_0": NLL + NOISE}), measured("new", {"q8_0": NLL + NOISE}, gates=limits)
    with pytest.raises(ConfigError, match=r"suite/new has no limit .* --fail-on 'dppl>0.01'"):
        against.judgements(new, old)
    ((extra,),) = gates(["q8_0:ln_ratio>0.01"], [new])
    (found,) = against.judgements(new, old, [extra])
    assert found.status == "pass"
    assert "all 4,096 scores equal" in found.reason
