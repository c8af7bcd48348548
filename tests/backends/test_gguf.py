"""GGUF files whose every value is known: blocks of Q4_K and Q6_K are built by hand, field by field, and loaded as any model is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from backends.transformers import open_session
from tqbench.core.files import sha256_file
from tqbench.core.presets import preset
from tqbench.core.session import LocalModel

HIDDEN, HEADS, KV_HEADS, VOCAB = 256, 4, 2, 259
KINDS = {"Q4_K_M": gguf.LlamaFileType.MOSTLY_Q4_K_M, "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}
MATRICES = {
    "token_embd": (VOCAB, HIDDEN),
    "blk.0.attn_q": (HIDDEN, HIDDEN),
    "blk.0.attn_k": (HIDDEN // 2, HIDDEN),
    "blk.0.attn_v": (HIDDEN // 2, HIDDEN),
    "blk.0.attn_output": (HIDDEN, HIDDEN),
    "blk.0.ffn_gate": (512, HIDDEN),
    "blk.0.ffn_up": (512, HIDDEN),
    "blk.0.ffn_down": (HIDDEN, 512),
}
FINER = ("blk.0.attn_v", "blk.0.ffn_down")  # of these Q4_K_M keeps six bits
NAMES = {
    "token_embd": "model.embed_tokens",
    **{f"blk.0.attn_{x}": f"model.layers.0.self_attn.{x}_proj" for x in "qkv"},
    "blk.0.attn_output": "model.layers.0.self_attn.o_proj",
    **{f"blk.0.ffn_{x}": f"model.layers.0.mlp.{x}_proj" for x in ("gate", "up", "down")},
}


def q4_k(rng: np.random.Generator, rows: int, columns: int) -> tuple[Any, Any]:
    """Blocks of 256 values: two halves d and dmin, eight scales and minima of six bits in twelve bytes, 256 codes of four bits; and what
    they stand for, d · scale · code − dmin · minimum."""
    shape = (rows, columns // 256)
    d, dmin = (2.0 ** rng.integers(-12, -9, shape) for _ in range(2))
    scale, minimum = rng.integers(0, 64, (*shape, 8)), rng.integers(0, 64, (*shape, 8))
    code = rng.integers(0, 16, (*shape, 8, 32))
    packed = np.empty((*shape, 12), np.uint8)
    packed[..., :4] = scale[..., :4] | (scale[..., 4:] >> 4) << 6  # the upper two bits of the last four lie above the first four
    packed[..., 4:8] = minimum[..., :4] | (minimum[..., 4:] >> 4) << 6
    packed[..., 8:] = (scale[..., 4:] & 15) | (minimum[..., 4:] & 15) << 4
    codes = code[..., 0::2, :] | code[..., 1::2, :] << 4  # of two ranges of 32 the second lies in the upper halves
    halves = np.stack([d, dmin], -1).astype(np.float16).view(np.uint8)
    raw = np.concatenate([halves, packed, codes.reshape(*shape, 128).astype(np.uint8)], -1)
    assert raw.shape[-1] == 144
    values = (d[..., None] * scale)[..., None] * code - (dmin[..., None] * minimum)[..., None]
    return raw.reshape(rows, -1), values.reshape(rows, columns).astype(np.float32)


def q6_k(rng: np.random.Generator, rows: int, columns: int) -> tuple[Any, Any]:
    """Blocks of 256 values: the lower four bits of the codes, the upper two, sixteen signed scales, d; they stand for
    d · scale · (code − 32)."""
    shape = (rows, columns // 256)
    d, scale = 2.0 ** rng.integers(-14, -11, shape), rng.integers(-128, 128, (*shape, 16))
    code = rng.integers(0, 64, (*shape, 2, 4, 32))  # halves of 128 values, in four ranges
    low, high = code & 15, code >> 4
    lower = low[..., :2, :] | low[..., 2:, :] << 4
    upper = sum(high[..., i, :] << 2 * i for i in range(4))
    parts = [
        lower.reshape(*shape, 128).astype(np.uint8),
        upper.reshape(*shape, 64).astype(np.uint8),
        scale.astype(np.int8).view(np.uint8),
        d[..., None].astype(np.float16).view(np.uint8),
    ]
    raw = np.concatenate(parts, -1)
    assert raw.shape[-1] == 210
    values = (d[..., None] * scale)[..., None] * (code.reshape(*shape, 16, 16) - 32)
    return raw.reshape(rows, -1), values.reshape(rows, columns).astype(np.float32)


def q8_0(rng: np.random.Generator, rows: int, columns: int) -> tuple[Any, Any]:
    """Blocks of 32 values: d and as many signed codes."""
    shape = (rows, columns // 32)
    d, code = 2.0 ** rng.integers(-11, -9, shape), rng.integers(-127, 128, (*shape, 32))
    raw = np.concatenate([d[..., None].astype(np.float16).view(np.uint8), code.astype(np.int8).view(np.uint8)], -1)
    return raw.reshape(rows, -1), (d[..., None] * code).reshape(rows, columns).astype(np.float32)


PACK = {"Q4_K": q4_k, "Q6_K": q6_k, "Q8_0": q8_0}


def kind_of(name: str, file: str) -> str:
    return "Q8_0" if file == "Q8_0" else "Q6_K" if name in FINER else "Q4_K"


@pytest.mark.parametrize("kind", PACK)
def test_blocks_by_hand_are_what_gguf_reads(kind: str) -> None:
    raw, values = PACK[kind](np.random.default_rng(1), 3, 512)
    assert np.array_equal(gguf.dequantize(raw, gguf.GGMLQuantizationType[kind]), values)


def write(path: Path, file: str) -> dict[str, Any]:
    """A Llama of one layer; the values of its matrices."""
    rng, values = np.random.default_rng(7), {}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(KINDS[file])
    for add, number in (
        (writer.add_context_length, 512),
        (writer.add_embedding_length, HIDDEN),
        (writer.add_block_count, 1),
        (writer.add_feed_forward_length, 512),
        (writer.add_head_count, HEADS),
        (writer.add_head_count_kv, KV_HEADS),
        (writer.add_rope_dimension_count, 64),
        (writer.add_vocab_size, VOCAB),
        (writer.add_bos_token_id, 258),
        (writer.add_eos_token_id, 258),
    ):
        add(number)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*letters(), "ab", "abb", "<|end|>"])
    writer.add_token_types([gguf.TokenType.NORMAL] * 258 + [gguf.TokenType.CONTROL])
    writer.add_token_merges(["a b", "ab b"])  # transformers 5.17 takes a list of one for text
    for name, (rows, columns) in MATRICES.items():
        kind = kind_of(name, file)
        raw, values[name] = PACK[kind](rng, rows, columns)
        writer.add_tensor(f"{name}.weight", raw, raw_dtype=gguf.GGMLQuantizationType[kind])
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def letters() -> list[str]:
    """The characters that byte-level BPE writes bytes as."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def turned(weight: Any, heads: int) -> Any:
    """Rows of queries and keys as Hugging Face has them: GGUF keeps the channels of a RoPE pair side by side."""
    return weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


@pytest.fixture(scope="module", params=KINDS)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp(request.param)
    path = folder / f"tiny-{request.param}.gguf"
    values = write(path, request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TQBENCH_CACHE", str(folder / "cache"))
        yield request.param, values, LocalModel("tiny", str(path), sha256_file(path))


def test_every_value_arrives_in_the_model(loaded: Any) -> None:
    _, values, model = loaded
    with open_session(model) as session:  # type: ignore[attr-defined]
        found = session.model.state_dict()
        for name, own in values.items():
            heads = {"blk.0.attn_q": HEADS, "blk.0.attn_k": KV_HEADS}.get(name)
            expected = turned(own, heads) if heads else own
            assert np.array_equal(found[f"{NAMES[name]}.weight"].numpy(), expected), name
        assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])


def test_records_say_how_weights_are_stored_and_computed(loaded: Any) -> None:
    file, _, model = loaded
    matrices = {"Q4_K_M": "6 Q4_K, 2 Q6_K", "Q8_0": "8 Q8_0"}[file]
    with open_session(model, dtype="bfloat16") as session:  # type: ignore[attr-defined]
        says = f"{file} ({matrices}), computed in bfloat16, dequantized on load from tiny-{file}.gguf (sha256 {model.sha256[:16]})"
        assert session.info.weights == says
        ids = np.arange(40)
        cache = session.new_cache(preset("q8_0"))
        scores = session.score(ids[:-1], cache, ids[1:], session.new_cache(None))
        assert np.isfinite(scores.nll).all()
        assert 0 < scores.kld.mean() < 0.1
