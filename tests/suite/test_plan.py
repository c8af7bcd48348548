"""A plan holds every point of the grid once, in the order in which it is measured; its name changes with whatever changes digits."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tqbench.core.errors import ConfigError
from tqbench.core.scheme import Scheme
from tqbench.measure import device
from tqbench.metrics.paired import ENOUGH
from tqbench.suite.cost import SCHEME_PASS
from tqbench.suite.load import load
from tqbench.suite.plan import Plan, plan, select
from tqbench.suite.schema import Overrides
from tqbench.tasks.perplexity import FLOOR_TOKENS

SUITES = Path(__file__).parents[2] / "suites"
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 1000,
    "max_position_embeddings": 256,
}

STREAM = {"recipe": "stream", "protocol": "strict"}


@pytest.fixture
def planned(tmp_path: Path):
    """Plans a suite of the given schemes, with more keys if wanted, on a model that is only a configuration."""
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(TINY))

    def make(schemes: str, more: str = "", task: str = "context: 64, tokens: 128", **overrides: str) -> Plan:
        path = tmp_path / "suite.yaml"
        path.write_text(f"model: tiny\ncorpus: python-docs\nschemes: [{schemes}]\ntasks: [perplexity: {{{task}}}]\n{more}")
        (found,) = load([path], Overrides(**overrides))
        return plan(found)

    return make


def labels(found: Plan) -> list[str]:
    return [cell.label for cell in found.cells]


def test_the_baseline_comes_first_for_every_context(planned) -> None:
    found = planned("f16, turbo4_pad128", task="context: [32, 64], tokens: 128, warmup: 4")
    assert [(cell.label, cell.params["context"]) for cell in found.cells] == [
        *(("baseline", 32), ("f16", 32), ("turbo4_pad128", 32)),
        *(("baseline", 64), ("f16", 64), ("turbo4_pad128", 64)),
    ]
    assert found.cells[0].params == STREAM | {"context": 32, "tokens": 128, "warmup": 4, "chunk": 32}
    assert len({cell.key for cell in found.cells}) == 6


def test_defaults_are_resolved(planned) -> None:
    cell, _ = planned("f16", task="context: 16").cells
    assert cell.params == STREAM | {"context": 16, "tokens": 4096, "warmup": 0, "chunk": 16}
    assert (cell.backend, cell.device, cell.dtype, cell.kernel, cell.corpus) == (
        "transformers",
        "cpu",
        "float32",
        "auto",
        {"name": "python-docs"},
    )


def test_a_cell_names_all_parameters_of_its_recipe(planned) -> None:
    task = "recipe: hf-stride, context: [32, 64], tokens: 128"
    assert [cell.params["stride"] for cell in planned("f16", task=task).cells] == [16, 16, 32, 32]
    numbers = {"context": 64, "tokens": 128, "warmup": 0, "stride": 5, "chunk": 64}
    assert planned("f16", task=f"{task}, stride: 5").cells[2].params == {"recipe": "hf-stride", "protocol": "strict", **numbers}


def test_deploy_leaves_three_quarters_of_a_window_after_the_exact_prefill(planned) -> None:
    params = planned("f16", task="context: 64, tokens: 128, protocol: deploy").cells[0].params
    assert (params["protocol"], params["chunk"]) == ("deploy", 16)
    params = planned("f16", task="context: 64, tokens: 128, protocol: deploy, chunk: 8").cells[0].params
    assert params["chunk"] == 8


CALIBRATED = "{name: mine, k: {codec: affine, bits: 8, group_size: 16, center: true}, v: f16}"


def test_calibration_is_carried_by_the_cells_that_need_it(planned) -> None:
    found = planned(f"f16, {CALIBRATED}", "calibration: {corpus: wikitext-2, tokens: 2k}\n")
    base, plain, calibrated = found.cells
    assert calibrated.params == plain.params | {"calibration": {"corpus": {"name": "wikitext-2"}, "tokens": 2048, "seed": 0}}
    assert "calibration" not in base.params | plain.params
    ((_, _, defaults),) = [planned(f"f16, {CALIBRATED}").cells]
    assert defaults.params["calibration"] == {"corpus": {"name": "python-docs"}, "tokens": 4096, "seed": 0}


def test_the_text_of_the_calibration_names_the_run(planned, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    identities = []
    for content in ("one", "two"):
        text.write_text(content)
        more = "calibration: {corpus: {name: file, path: notes.txt}}\n"
        identities.append([planned(scheme, more).identity() for scheme in ("f16", CALIBRATED)])
    (plain, one), (again, two) = identities
    assert plain == again
    assert one != two


def test_the_kernel_is_for_schemes_only(planned) -> None:
    assert [cell.kernel for cell in planned("f16", kernel="reference").cells] == ["auto", "reference"]


def test_the_same_scheme_again_is_a_control_with_a_number(planned) -> None:
    found = planned("f16, f16, {scheme: f16, bypass: bridge}, {scheme: f16, bypass: bridge}, f16")
    assert labels(found) == ["baseline", "f16", "f16#2", "f16[bridge]", "f16#2[bridge]", "f16#3"]


def test_bypass_goes_on_every_scheme_and_leaves_the_gates_out(planned) -> None:
    gates = "gates: [{schemes: '*', metric: dppl, limit: 0}]\n"
    found = planned("q8_0, {scheme: q8_0, bypass: identity}, turbo4_pad128", gates, bypass="identity")
    assert labels(found) == ["baseline", "q8_0[identity]", "turbo4_pad128[identity]"]
    assert found.gates == ()


def chosen(plan) -> list[str]:
    return [cell.label for cell in plan.chosen]


def test_k_keeps_the_baselines_and_the_whole_plan(planned) -> None:
    gates = "gates: [{schemes: f16, metric: dppl, limit: 0}, {schemes: 'turbo*', metric: dppl, limit: 1}]\n"
    whole = planned("f16, turbo4_pad128, turbo3_pad128", gates, task="context: [32, 64], tokens: 128")
    (some,) = select([whole], "turbo*")
    assert chosen(some) == ["baseline", "turbo4_pad128", "turbo3_pad128"] * 2
    assert some.cells == whole.cells  # what was not asked for stays in the plan, so that a gate on it cannot vanish
    assert some.gates == whole.gates
    assert some.identity() == whole.identity()  # the rest can follow in the same run
    (one,) = select([whole], "*-c64-*")
    assert {cell.params["context"] for cell in one.chosen} == {64}
    (exact,) = select([whole], "f16,turbo3_pad128")
    assert chosen(exact) == ["baseline", "f16", "turbo3_pad128"] * 2


def test_brackets_in_labels_are_no_wildcards(planned) -> None:
    (found,) = select([planned("f16, {scheme: f16, bypass: bridge}")], "f16[bridge]")
    assert chosen(found) == ["baseline", "f16[bridge]"]


@pytest.mark.parametrize("only", ["q9", "f16,q9", "", " , "])
def test_k_that_selects_nothing_is_an_error(planned, only: str) -> None:
    with pytest.raises(ConfigError, match=r"-k: .* selects nothing; .*labels: baseline, f16"):
        select([planned("f16")], only)


def test_k_may_select_in_one_suite_of_several(planned) -> None:
    (found,) = select([planned("f16"), planned("bf16")], "bf16")
    assert labels(found) == ["baseline", "bf16"]


def test_the_name_of_a_run_is_stable_and_changes_with_what_changes_digits(planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = planned("f16").identity()
    assert planned("f16", "timeout: 5\n").identity() == first
    others = [
        planned("bf16").identity(),
        planned("f16", "dtype: float64\n").identity(),
        planned("f16", task="context: 64, tokens: 128, chunk: 32").identity(),
    ]
    (tmp_path / "tiny" / "config.json").write_text(json.dumps({**TINY, "rope_theta": 1}))
    others.append(planned("f16").identity())
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    others.append(planned("f16").identity())
    assert len({first, *others}) == 6


def test_a_text_file_is_known_by_its_content(planned, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("one")
    first = planned("f16", corpus=str(text)).identity()
    text.write_text("two")
    assert planned("f16", corpus=str(text)).identity() != first


def test_costs_count_every_pass(planned) -> None:
    found = planned("f16", task="context: 64, tokens: 200")  # three whole windows
    assert [cost.tokens for cost in found.costs] == [2 * 192, 3 * 192]
    assert [found.tokens(cell) for cell in found.cells] == [2 * 192, 3 * 192]
    base, scheme = found.costs
    assert base.seconds
    assert scheme.seconds == pytest.approx(base.seconds * (1 + 2 * SCHEME_PASS) / 2)
    assert scheme.peak_bytes > base.peak_bytes


def test_the_baseline_runs_beside_the_first_scheme_only_while_its_logits_are_kept(planned) -> None:
    small = [cost.seconds for cost in planned("f16, bf16").costs]
    assert small[2] == pytest.approx(small[1] * 2 * SCHEME_PASS / (1 + 2 * SCHEME_PASS))
    large = [cost.seconds for cost in planned("f16, bf16", task="context: 64, tokens: 1024k").costs]  # 1000 logits each: more than 2 GB
    assert large[2] == large[1]


def test_the_baseline_is_brought_by_the_first_scheme_that_will_be_measured(planned) -> None:
    """Not by one that `-k` or a budget leaves out, that is measured, or that cannot run."""
    beside, alone = (cost.seconds for cost in planned("f16, bf16").costs[1:])
    assert beside > alone
    whole = planned("q8_0, f16, bf16, f32")  # q8_0 has blocks of 32 channels, heads here have 16
    f16, bf16, f32 = whole.cells[2:]

    def taken(found: Plan) -> list[float | None]:
        return [pytest.approx(found.cost(cell).seconds) for cell in (f16, bf16, f32)]

    assert [beside, alone, alone] == taken(whole)
    (some,) = select([whole], "bf16,f32")
    assert [alone, beside, alone] == taken(some)
    assert [alone, alone, beside] == taken(dataclasses.replace(some, done=frozenset({bf16.key})))
    assert [alone, alone, beside] == taken(dataclasses.replace(some, dropped={bf16.key: "it takes long"}))


def test_costs_count_overlapping_windows(planned) -> None:
    """64 tokens from 0, 20, 40 and 60; then from 80, where 50 are left."""
    found = planned("f16", task="recipe: hf-stride, context: 64, stride: 20, tokens: 130")
    assert [cost.tokens for cost in found.costs] == [2 * (4 * 64 + 50), 3 * (4 * 64 + 50)]


def test_costs_count_the_second_cut_over_no_more_windows_than_it_runs(planned) -> None:
    """So many windows as hold its tokens, however far these overlap; in deploy a scheme has no second cut."""
    strict, deploy = (
        planned("f16", task=f"recipe: hf-stride, context: 32, stride: 8, tokens: 8k, protocol: {protocol}, chunk: 16").costs
        for protocol in ("strict", "deploy")
    )
    windows, again = (8192 - 32) // 8 + 1, FLOOR_TOKENS // 32
    assert [cost.tokens for cost in strict] == [32 * (windows + again), 32 * (2 * windows + again)]
    assert [cost.tokens for cost in deploy] == [32 * (windows + again), 32 * 2 * windows]


def test_a_calibrated_scheme_takes_longer(planned) -> None:
    short, long = (planned(CALIBRATED, f"calibration: {{tokens: {tokens}}}\n").costs[1].seconds for tokens in (512, 4096))
    assert long > short


def test_a_scheme_that_cannot_store_the_models_vectors_says_so(planned) -> None:
    base, scheme = planned("q8_0").costs
    assert base.unsupported is None
    assert scheme.unsupported == "blocks of 32 channels do not fit head_dim 16"


def test_every_device_of_a_list_has_its_cells(planned) -> None:
    found = planned("f16", more="device: [cpu, cuda]")
    assert [(cell.label, cell.device) for cell in found.cells] == [
        ("baseline", "cpu"),
        ("f16", "cpu"),
        ("baseline", "cuda"),
        ("f16", "cuda"),
    ]
    assert len({cell.setting for cell in found.cells}) == 2
    assert {cell.device for cell in planned("f16", more="device: cuda:1").cells} == {"cuda:1"}
    with pytest.raises(ConfigError, match=r"suite.yaml:5: 'cpu' is in the list already"):
        planned("f16", more="device: [cpu, cpu]")
    with pytest.raises(ConfigError, match="device must be a device or a list of them"):
        planned("f16", more="device: [cpu, 7]")


def test_a_device_that_is_not_here_is_planned_as_unsupported(planned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "absent", lambda name: "no GPU with a driver is seen here" if name == "cuda" else None)
    costs = planned("f16", more="device: [cpu, cuda]").costs
    why = "device 'cuda' is not here: no GPU with a driver is seen here"
    assert [cost.unsupported for cost in costs] == [None, None, why, why]
    assert [cost.seconds for cost in costs][2:] == [0.0, 0.0]
    assert all(cost.seconds for cost in costs[:2])
    hub = planned("f16", model="some-org/some-model", device="cuda").costs
    assert {(cost.seconds, cost.unsupported) for cost in hub} == {(0.0, why)}


def test_what_cannot_be_known_is_not_guessed(planned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "absent", lambda name: None)
    assert {cost.seconds for cost in planned("f16", device="cuda").costs} == {None}
    hub = planned("f16", model="some-org/some-model")
    assert {(cost.seconds, cost.peak_bytes) for cost in hub.costs} == {(None, None)}
    assert [cost.download_bytes for cost in hub.costs] == [None, 0]  # HF_HUB_OFFLINE is set: nobody tells


@pytest.mark.parametrize("path", sorted(SUITES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_suite_plans(path: Path) -> None:
    (suite,) = load([path])
    found = plan(suite)
    assert found.cells[0].scheme is None
    here = [cost for cell, cost in zip(found.cells, found.costs, strict=True) if cell.device == "cpu"]
    assert here or path.stem == "gpu"  # which a machine without one plans as unsupported
    assert all(cost.seconds and not cost.unsupported for cost in here)
    assert found.root == path.parent


def test_the_quickstart_fits_its_promise() -> None:
    (suite,) = load([SUITES / "quickstart.yaml"])
    found = plan(suite)
    assert labels(found) == ["baseline", "turbo4[identity]", "q8_0", "turbo4", "turbo3", "q8_0/turbo3", "kivi2"]
    params = found.cells[0].params
    assert (params["recipe"], params["context"], params["tokens"]) == ("stream", 512, 2048)


def test_the_gate_has_enough_windows_to_decide() -> None:
    (suite,) = load([SUITES / "gate.yaml"])
    params = plan(suite).cells[0].params
    assert params["tokens"] // params["context"] >= ENOUGH


def test_the_llamacpp_suite_shows_both_channel_orders() -> None:
    (suite,) = load([SUITES / "llamacpp.yaml"])
    orders = {scheme.name: scheme.k.order for scheme in suite.schemes}
    assert orders == {"f16": "native", "q8_0": "llamacpp", "q4_0": "llamacpp", "q4_0_half_split": "native"}
    half, whole = (next(s for s in suite.schemes if s.name == name) for name in ("q4_0_half_split", "q4_0"))
    assert (half.k.codec, half.v) == (whole.k.codec, whole.v)


def test_the_long_suite_reaches_8k() -> None:
    (suite,) = load([SUITES / "long_ctx.yaml"])
    reached = {kind: max(length for other, task in suite.tasks if other == kind for length in task.context) for kind, _ in suite.tasks}
    assert reached == dict.fromkeys(("perplexity", "prefill", "decode", "memory"), 8192)


def test_the_storage_suite_has_both_coders_at_both_depths() -> None:
    (suite,) = load([SUITES / "storage.yaml"])
    found = plan(suite)
    assert [one.name for one in suite.schemes] == ["f16", "q8_0", "turbo4", "turbo3", "kivi2", "kvtc_lite_4x", "kvtc_paper_8x"]
    assert {(cell.params["context"], cell.params["entropy"]) for cell in found.cells} == {
        (c, e) for c in (1024, 4096) for e in ("zstd", "ans")
    }
    assert len({cell.setting for cell in found.cells}) == 4
    assert all(
        cost.tokens > cell.params["context"] * cell.params["repetitions"] for cell, cost in zip(found.cells, found.costs, strict=True)
    )
    assert all(cost.seconds for cost in found.costs)


SPEED = """\
model: tiny
corpus: python-docs
schemes: [f16]
tasks:
  - decode: {depth: [0, 64], new: 20, repetitions: 4}
  - prefill: {context: [64, 128], chunk: 32}
  - memory: {context: 64}
"""


def test_speed_tasks_are_cells_of_their_own(planned, tmp_path: Path) -> None:
    planned("f16")  # writes the model
    path = tmp_path / "speed.yaml"
    path.write_text(SPEED)
    (found,) = load([path])
    cells = plan(found).cells
    assert [(cell.task, cell.label, cell.params["context"]) for cell in cells] == [
        *(("decode", label, depth) for depth in (0, 64) for label in ("baseline", "f16")),
        *(("prefill", label, length) for length in (64, 128) for label in ("baseline", "f16")),
        *(("memory", label, 64) for label in ("baseline", "f16")),
    ]
    assert cells[0].params == {"context": 0, "new": 20, "repetitions": 4, "protocol": "strict"}
    assert cells[4].params == {"context": 64, "chunk": 32, "repetitions": 3, "protocol": "strict"}
    assert cells[-1].params == {"context": 64, "protocol": "strict"}
    assert len({cell.key for cell in cells}) == len(cells)


def test_the_context_is_counted_for_the_baseline_and_both_lanes_for_all(planned, tmp_path: Path) -> None:
    planned("f16")
    path = tmp_path / "speed.yaml"
    path.write_text(SPEED)
    (found,) = load([path])
    costs = plan(found).costs
    timed = 2 * (
        4 * 21 + 17 + 1 + 8
    )  # four repetitions of a step and 20 more, 16 staged ones behind one, one looked into, 8 scored; two lanes
    assert [cost.tokens for cost in costs[:4]] == [timed, timed, 64 + timed, timed]
    assert all(cost.seconds and cost.peak_bytes for cost in costs)
    assert costs[3].seconds > costs[1].seconds
    assert costs[3].peak_bytes > costs[1].peak_bytes


def suite(name: str) -> dict[str, Scheme]:
    (found,) = load([SUITES / f"{name}.yaml"])
    return {scheme.label: scheme for scheme in found.schemes}


@pytest.mark.parametrize("bits", [3, 4])
def test_the_rotation_suite_changes_the_rotation_only(bits: int) -> None:
    found = {name: scheme for name, scheme in suite("rotation").items() if name.endswith(f"_{bits}b")}
    assert len({scheme.definition() for scheme in found.values()}) == len(found) == 7
    assert len({scheme.k.codec.plain for scheme in found.values()}) == 1
    assert all(scheme.k == scheme.v for scheme in found.values())


def test_the_sides_suite_has_each_scheme_on_either_side_and_on_both() -> None:
    found = suite("sides")
    whole = [name for name in found if "/" not in name]
    assert sorted(found) == sorted(name for one in whole for name in (one, f"{one}/f32", f"f32/{one}"))


GATES = "gates: [{schemes: q8_0, metric: dppl, limit: 0.1}, {schemes: '*', metric: kld, limit: 1}]"
UNTIL = 'context: 64, tokens: "until decided, at most 8k"'


def test_until_decided_carries_the_gates_and_how_many_judgements_there_are(planned) -> None:
    found = planned("q8_0, f16", GATES, UNTIL)
    base, q8_0, f16 = found.cells
    assert base.params == STREAM | {"context": 64, "tokens": 8192, "until": "decided", "warmup": 0, "chunk": 64}
    assert [gate["metric"] for gate in q8_0.params["judging"]["gates"]] == ["dppl", "kld"]
    assert [gate["metric"] for gate in f16.params["judging"]["gates"]] == ["kld"]
    assert q8_0.params["judging"]["beside"] == f16.params["judging"]["beside"] == 3
    assert len({cell.setting for cell in found.cells}) == 1
    windows = 32  # of 128: looks come after 32, 64 and 128
    assert found.tokens(base) == 64 * (windows + min(windows, FLOOR_TOKENS // 64))
    assert found.tokens(q8_0) == 64 * (2 * 128 + FLOOR_TOKENS // 64)


@pytest.mark.parametrize(
    ("task", "gates", "says"),
    [
        (UNTIL, "", "there is no gate on what this task measures"),
        (UNTIL.replace("8k", "1k"), GATES, "at most 1024 tokens are fewer than the 30 windows of 64"),
        (UNTIL.replace("8k", "4k"), GATES.replace("kld", "kld_worst_decile"), "the 100 windows of 64 that a verdict on kld_worst_decile"),
        (UNTIL.replace("8k", "many"), GATES, "tokens must be a whole number of tokens"),
        (UNTIL.replace("decided", "bored"), GATES, "or `until decided, at most 128k`"),
    ],
)
def test_until_decided_needs_something_to_decide(planned, task: str, gates: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        planned("q8_0", gates, task)


PROBED = """\
model: tiny
corpus: python-docs
schemes: [f16, bf16, f32]
tasks:
  - sensitivity: {context: 64, tokens: 200, layers: 'b*'}
"""


def test_sensitivity_counts_a_pass_per_probe_and_shares_its_baseline(planned, tmp_path: Path) -> None:
    planned("f16")  # writes the model
    path = tmp_path / "probed.yaml"
    path.write_text(PROBED)
    (found,) = load([path])
    made = plan(found)
    assert [cell.params.get("probes") for cell in made.cells] == [None, "sides", "layers", "sides"]
    assert len({cell.setting for cell in made.cells}) == 1
    layers, covered = TINY["num_hidden_layers"], 192  # three whole windows
    assert [made.tokens(cell) for cell in made.cells] == [covered * n for n in (2, 4, 4 + 2 * layers, 4)]
    costs = {cell.label: cost for cell, cost in zip(made.cells, made.costs, strict=True)}
    assert costs["bf16"].seconds > 1.5 * costs["f16"].seconds
    assert costs["f16"].seconds == costs["f32"].seconds
    assert all(cost.peak_bytes and cost.disk_bytes for cost in costs.values())


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("context: 128, tokens: 100", "tokens 100 do not fill one window"),
        ("context: 64, tokens: 64, chunk: 128", "chunk 128 is longer than the window"),
        ("context: 64, warmup: 3", "unknown key|warmup"),
        ("layers: 7", "layers must be"),
    ],
)
def test_a_sensitivity_that_cannot_be_is_refused(planned, tmp_path: Path, keys: str, says: str) -> None:
    planned("f16")
    path = tmp_path / "probed.yaml"
    path.write_text(PROBED.replace("context: 64, tokens: 200, layers: 'b*'", keys))
    with pytest.raises(ConfigError, match=says):
        load([path])


def test_a_later_stretch_is_other_cells_of_the_same_shape(planned) -> None:
    first, later = (planned("f16", task=f"context: 64, tokens: 128{more}").cells[1] for more in ("", ", skip: 999"))
    assert "skip" not in first.params
    assert later.params == first.params | {"skip": 999}
    assert first.setting != later.setting
