"""Models as the hub has them, made here: a hub cache as huggingface_hub lays it out, and plain directories; offline, by the command line.

Weights are random and small, the tokenizer takes bytes. What is refused is refused before anything of a model is run.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from backends.transformers import tiny
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.suite.load import load
from tqbench.suite.plan import plan

COMMIT, OTHER = "c0ffee" + "0" * 34, "deca" + "f" * 36
QWEN3_NEXT = {
    "num_hidden_layers": 4,
    "head_dim": 64,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "mlp_only_layers": [0, 1, 2, 3],
}
WIDE = 160  # of a sliding window in which KIVI packs some of what is seen


def hybrid() -> Any:
    """Three layers of linear attention, one that holds K and V."""
    from transformers import Qwen3NextConfig

    return tiny.make(Qwen3NextConfig(**tiny.SHAPE | QWEN3_NEXT), "float32")


MODELS: dict[str, Callable[[], Any]] = {
    "tiny/llama": tiny.llama,
    "tiny/qwen2": tiny.qwen2,
    "qwen3": tiny.qwen3,
    "tiny/gemma3": lambda: tiny.gemma3(sliding_window=WIDE),
    "next": hybrid,
}
# Of each: its architecture, layers that hold K and V of how many, and how llama.cpp orders the channels of its keys.
FACTS = {
    "tiny/llama": ("llama", (2, 2), "interleaved"),
    "tiny/qwen2": ("qwen2", (2, 2), "half_split"),
    "qwen3": ("qwen3", (2, 2), "half_split"),
    "tiny/gemma3": ("gemma3_text", (2, 2), "half_split"),
    "next": ("qwen3_next", (1, 4), "half_split"),
}
SUITE = """
name: hub
model: [{models}]
backend: {backend}
corpus: python-docs
schemes: [q8_0, turbo4, kivi2]
tasks: [perplexity: {{context: 192, tokens: 192, warmup: 8}}]
{more}
"""


def save(model: Any, folder: Path) -> Path:
    """A plain directory: weights, configuration, and a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    model.save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


def into_hub(folder: Path, hub: Path, name: str, commit: str = COMMIT, ref: str | None = "main") -> Path:
    """The same as huggingface_hub keeps it: blobs by hash, a snapshot of links to them, and the commit that a ref means."""
    repo = hub / f"models--{name.replace('/', '--')}"
    snapshot = repo / "snapshots" / commit
    for part in ("blobs", "refs", f"snapshots/{commit}"):
        (repo / part).mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        blob = repo / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(f"../../blobs/{blob.name}")
    if ref:
        (repo / "refs" / ref).write_text(commit)
    return snapshot


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save(make(), root / name) for name, make in MODELS.items()}


@pytest.fixture
def hub(folders: dict[str, Path], tmp_path: Path) -> Path:
    """Those with a slash lie in the hub cache, the others beside the suite."""
    for name, folder in folders.items():
        if "/" in name:
            into_hub(folder, tmp_path / "cache", name)
        else:
            shutil.copytree(folder, tmp_path / name)
    return tmp_path / "cache"


@pytest.fixture
def measure(tqbench: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Runs the suite over models, offline."""

    def run(*models: str, backend: str = "transformers", more: str = "", command: tuple[str, ...] = ("run",)) -> Any:
        (tmp_path / "hub.yaml").write_text(SUITE.format(models=", ".join(models), backend=backend, more=more))
        env = {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
        return tqbench(*command, "hub.yaml", env=env)

    return run


def records(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in folder.glob("results/hub/*/cells/*/record.json")]
    return [record | {"label": (record["cell"]["scheme"] or {"name": "baseline"})["name"]} for record in found]


def holds(found: list[dict[str, Any]], name: str, of_hub: bool) -> None:
    """What the records of a model must say."""
    own = {record["label"]: record for record in found if record["cell"]["model"].partition("@")[0] == name}
    architecture, layers, order = FACTS[name]
    assert {label: (record["outcome"], record["reason"]) for label, record in own.items()} == dict.fromkeys(
        ("baseline", "q8_0", "turbo4", "kivi2"), ("ok", None)
    )
    for label, record in own.items():
        model = record["model"]
        assert (model["architecture"], (model["kv_layers"], model["layers"])) == (architecture, layers)
        assert (model["revision"], model["remote_code"]) == (COMMIT if of_hub else None, None)
        assert model["weights"].startswith(f"commit {COMMIT}" if of_hub else f"directory {name}")
        assert re.fullmatch("[0-9a-f]{64}", model["weights_sha256"])
        sides = [(side["side"], side["order"]) for side in record["evidence"]]
        assert len(sides) == (0 if label == "baseline" else 2 * layers[0])
        assert {o for side, o in sides if side == "k"} <= {order if label == "q8_0" else "native"}
        assert label == "baseline" or record["metrics"]["kld"]["value"] > 0
        assert label == "baseline" or record["coverage"] > (0.05 if label == "kivi2" else 0.99)


def test_every_architecture_runs_from_the_hub_and_from_a_directory(measure: Callable[..., Any], hub: Path, tmp_path: Path) -> None:
    done = measure(*MODELS)
    assert done.returncode == 0, done.stdout + done.stderr
    found = records(tmp_path)
    for name in MODELS:
        holds(found, name, of_hub="/" in name)
    assert len({record["model"]["weights_sha256"] for record in found}) == len(MODELS)
    assert "1 of 4 layers" in done.stdout
    assert "0 of 20 cells measured now" in measure(*MODELS).stdout


@pytest.mark.slow
def test_mlx_lm_runs_the_same_from_the_hub(measure: Callable[..., Any], hub: Path, tmp_path: Path) -> None:
    """Where it has the architecture. Its linear attention is another matter: tests/backends/test_mlx.py."""
    names = ("tiny/llama", "tiny/qwen2", "qwen3", "tiny/gemma3")
    done = measure(*names, backend="mlx")
    assert done.returncode == 0, done.stdout + done.stderr
    for name in names:
        holds(records(tmp_path), name, of_hub="/" in name)


def test_a_revision_is_pinned_and_another_one_is_another_run(
    measure: Callable[..., Any], hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tag beside main, and main that moves on: what was measured of the commit before is not taken for it."""
    other = save(tiny.llama(num_hidden_layers=1), tmp_path / "other")
    into_hub(other, hub, "tiny/llama", OTHER, "small")
    done = measure("tiny/llama@small", "tiny/llama", command=("run", "-k", "turbo4"))
    assert done.returncode == 0, done.stdout + done.stderr
    found = {record["cell"]["model"]: record["model"] for record in records(tmp_path)}
    assert {name: (model["revision"], model["layers"]) for name, model in found.items()} == {
        "tiny/llama@small": (OTHER, 1),
        "tiny/llama": (COMMIT, 2),
    }
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    (suite,) = load([tmp_path / "hub.yaml"])
    before = plan(suite).identity()
    (hub / "models--tiny--llama" / "refs" / "main").write_text(OTHER)
    assert plan(suite).identity() != before


# --- what is refused, without a worker


def opened(folder: Path, *, trust: bool = False, backend: str = "transformers") -> Any:
    """As a worker opens it."""
    from tqbench.core import registry
    from tqbench.models import resolve

    return registry.backend(backend)(resolve.resolve(str(folder), trust_remote_code=trust), "cpu", "float32")


def configured(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


OWN_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
open({marker!r}, "a").write("ran")

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def plain(folders: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(folders["tiny/llama"], tmp_path / "plain")


def with_own_code(folder: Path, marker: Path) -> Path:
    (folder / "modeling_own.py").write_text(OWN_CODE.format(marker=str(marker)))
    own = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
    return configured(folder, model_type="own", architectures=["OwnModel"], auto_map=own)


@pytest.mark.parametrize("backend", ["transformers", "mlx"])
def test_code_of_a_model_is_not_run_unasked(backend: str, plain: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs code of its own \(modeling_own.py\), which is not run unasked.*trust_remote_code: true"):
        opened(with_own_code(plain, tmp_path / "marker"), backend=backend)
    assert not (tmp_path / "marker").exists()


def test_code_that_is_asked_for_runs_and_the_record_says_so(measure: Callable[..., Any], plain: Path, tmp_path: Path) -> None:
    with_own_code(plain, tmp_path / "marker")
    refused = measure("./plain", command=("run", "-k", "turbo4"))
    assert refused.returncode == 3, refused.stdout + refused.stderr
    assert not (tmp_path / "marker").exists()
    done = measure("./plain", more="trust_remote_code: true", command=("run", "-k", "turbo4"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "marker").exists()
    ran = [record for record in records(tmp_path) if record["outcome"] == "ok"]
    assert len(ran) == 2
    digest = hashlib.sha256(b"modeling_own.py\0" + (plain / "modeling_own.py").read_bytes()).hexdigest()
    assert {record["model"]["remote_code"] for record in ran} == {f"modeling_own.py (sha256 {digest[:16]})"}


@pytest.mark.parametrize("backend", ["transformers", "mlx"])
def test_an_architecture_that_nobody_knows_is_said(backend: str, plain: Path) -> None:
    with pytest.raises(Unsupported, match=r"architecture 'unheard_of' of model '.*plain' is not known to transformers"):
        opened(configured(plain, model_type="unheard_of"), backend=backend)


def test_a_model_that_writes_no_text_is_said(plain: Path) -> None:
    with pytest.raises(Unsupported, match=r"architecture 'clip' of model '.*plain' is no causal language model"):
        opened(configured(plain, model_type="clip"))


def test_a_model_without_a_tokenizer_is_said(plain: Path) -> None:
    for file in plain.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(Unsupported, match=r"model '.*plain' has no tokenizer that transformers"):
        opened(plain)


def test_arrays_that_are_missing_are_not_made_up(plain: Path) -> None:
    """The engine would go on with random ones, and say so in a log that nobody reads."""
    arrays = load_file(plain / "model.safetensors")
    del arrays["model.layers.1.self_attn.k_proj.weight"]
    save_file(arrays, plain / "model.safetensors", {"format": "pt"})
    with pytest.raises(Unsupported, match=r"lack 1 arrays that it needs, 'model.layers.1.self_attn.k_proj.weight' first"):
        opened(plain)


def test_a_suite_on_a_pickle_is_refused_at_once(measure: Callable[..., Any], plain: Path, tmp_path: Path) -> None:
    (plain / "model.safetensors").unlink()
    (plain / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    for command in ("run", "plan"):
        refused = measure("./plain", command=(command,))
        assert refused.returncode == 2
        assert "hub.yaml:3: model './plain' has no safetensors, only pytorch_model.bin: a pickle may run any code" in refused.stderr
    assert not (tmp_path / "results").exists()


def test_a_model_that_cannot_be_had_ends_the_run_before_it_is_named(measure: Callable[..., Any], tmp_path: Path) -> None:
    """A run is named by the commits of its models, so they come first."""
    refused = measure("nobody/nothing@v1")
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert "model 'nobody/nothing@v1' is not in the local hub cache and cannot be downloaded" in refused.stderr
    assert not (tmp_path / "results").exists()
