"""KVTC's Triton kernels, in the interpreter where there is no GPU: the bytes of loops and codecs, for every width and kind of run."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tqbench.codecs.blocks import packing, runs
from tqbench.codecs.blocks.wrap import Bridge, Heads
from tqbench.codecs.kvtc_lite import KvtcLite
from tqbench.codecs.kvtc_paper import KvtcPaper
from tqbench.core.codec import Learned
from tqbench.core.errors import EvidenceError, Unsupported
from tqbench.core.op import Place
from tqbench.kernels import decode, encode, triton
from tqbench.kernels.packbits import reference as loops_of_bits
from tqbench.kernels.sections import reference as loops
from tqbench.testing.samples import SECTIONS as ROWS
from tqbench.testing.samples import WIDTHS, gaussian, strided

pytestmark = pytest.mark.skipif(not triton.runs(), reason=triton.missing() or "no CUDA device, and Triton was not told to interpret")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GPU = Place(device="cuda", dtype="bfloat16", head_dim=64)


def same(mine: Tensor, theirs: Tensor) -> bool:
    """Bit for bit."""
    theirs = theirs.to(mine.device)
    kinds = mine.dtype == theirs.dtype and mine.shape == theirs.shape
    return kinds and (not mine.numel() or torch.equal(mine.contiguous().view(torch.uint8), theirs.contiguous().view(torch.uint8)))


@pytest.mark.parametrize("rows", ROWS)
def test_sections_have_the_bytes_of_the_loops(rows: str) -> None:
    from tqbench.kernels.sections import _triton

    expected, given = loops.quantize(ROWS[rows], WIDTHS), ROWS[rows].to(DEVICE)
    for x in (given, strided(given)):
        for mine, theirs in zip(_triton.quantize(x, WIDTHS), expected, strict=True):
            assert same(mine, theirs)
    back, truth = _triton.dequantize(*(x.to(DEVICE) for x in expected), torch.float32).cpu(), loops.dequantize(*expected, torch.float32)
    assert torch.allclose(back, truth, rtol=0, atol=2.0**-23 * float(truth.abs().max() if truth.numel() else 0))  # one rounding less


@pytest.mark.parametrize("count", [0, 1, 7, 8, 13, 128, 300])
def test_streams_of_every_width_and_length(count: int) -> None:
    from tqbench.kernels.packbits import _triton

    draw, size = np.random.default_rng(count), 5 + max(sum(packing.stream_bytes(width, count) for width in head) for head in WIDTHS)
    top = (1 << torch.tensor(WIDTHS))[:, None, :, None] - 1
    codes = (torch.from_numpy(draw.integers(0, 1 << 16, size=(2, 2, 2, 17, count))) & top).to(torch.int32)
    packed = _triton.pack_mixed(codes.to(DEVICE), WIDTHS, size)
    assert same(packed, loops_of_bits.pack_mixed(codes, WIDTHS, size))
    for held in (packed, strided(packed), torch.cat([packed, packed], 2)[:, :, :2]):
        assert same(_triton.unpack_mixed(held, WIDTHS, count), codes)


def test_what_does_not_fit_is_refused() -> None:
    from tqbench.kernels.packbits import _triton as bits
    from tqbench.kernels.sections import _triton as parts

    codes = torch.zeros(1, 1, 1, 2, 16, dtype=torch.int32, device=DEVICE)
    for call, says in (
        (lambda: bits.pack_mixed(codes, ((9, 3),), 23), "24 bytes of codes do not fit 23"),
        (lambda: bits.pack_mixed(codes, ((17, 3),), 99), "0 to 16 bits"),
        (lambda: bits.pack_mixed(codes.long(), ((9, 3),), 24), "takes torch.int32"),
        (lambda: bits.unpack_mixed(codes[..., 0].byte(), ((9, 3), (9, 3)), 16), "each head"),
        (lambda: parts.quantize(codes.double(), ((9, 3),)), "takes float32 rows"),
        (lambda: parts.quantize(codes.float(), ((9,),)), "takes float32 rows"),
        (lambda: parts.dequantize(codes, codes[..., 0].half(), codes[..., 0].half(), torch.float64), "takes int32 codes"),
    ):
        with pytest.raises(EvidenceError, match=says):
            call()


# --- kvtc_paper


def paper(rows: int = 1, sizes: Sequence[int] = runs.SIZES) -> KvtcPaper:
    """With runs of every kind of these sizes, some several times."""
    span, head_dim = 2, 64
    kinds = [(*kind, 1 + (kind.size < 64)) for kind in sorted(runs.kinds(sizes), key=lambda kind: (kind.bits, kind.size))]
    rank, draw = sum(size * count for size, _, count in kinds), torch.Generator().manual_seed(0)
    basis = torch.randn(rows, span * head_dim, rank, generator=draw) / (span * head_dim) ** 0.5
    learned = {"mean": gaussian(rows, 1, span * head_dim), "basis": basis.half(), "plan": torch.tensor(kinds, dtype=torch.int32)}
    return KvtcPaper(span=span, learned=Learned(learned))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [1, 19])
def test_runs_of_every_kind_have_the_codecs_bytes(tokens: int, dtype: torch.dtype) -> None:
    codec, x = paper(rows=2), gaussian(2, 4, tokens, 64, seed=1).to(DEVICE, dtype)
    expected = replace(codec, projected="float32").encode(x)
    chosen = encode.OP.resolve(codec, "auto", GPU)
    assert chosen.impl == "triton"
    packed = chosen.fn(codec, x)
    assert packed.keys() == expected.keys()
    for name, theirs in expected.items():
        assert packed[name].dtype == theirs.dtype
        most = 0 if name.startswith("int") else 2  # a mean is summed in another order
        few = most if DEVICE == "cpu" else 2 + 1e-3 * theirs.numel()  # so is a product of matrices
        assert int((packed[name] != theirs).sum()) <= few, name


def test_runs_come_back_with_some_or_all_heads() -> None:
    codec, x = paper(), gaussian(1, 2, 19, 64, seed=2).to(DEVICE)
    packed = codec.encode(x)
    truth = codec.decode({name: array.cpu() for name, array in packed.items()}, 64, torch.float64)
    held = {name: torch.cat([array, array], 2)[:, :, :19] for name, array in packed.items()}  # as a store's, with room to grow
    for some, wanted in ((codec, truth), (Heads(codec, first=1, count=1), truth[:, 1:])):
        chosen = decode.OP.resolve(some, "auto", GPU)
        assert chosen.impl == "triton"
        for arrays in (packed, held):
            back = chosen.fn(some, arrays, 64, x[:, :, :0]).double().cpu()
            assert back.shape == wanted.shape
            assert float((back - wanted).norm() / wanted.norm()) < 1e-6


def test_every_code_of_eight_bits_comes_back() -> None:
    """Both signs, subnormal ones, NaN."""
    plan = torch.tensor([[256, 8, 1]], dtype=torch.int32)
    codec = KvtcPaper(span=1, learned=Learned(mean=torch.zeros(1, 1, 256), basis=torch.eye(256)[None].half(), plan=plan))
    one = torch.ones(1, 1, 1, 1, dtype=torch.float16, device=DEVICE)
    packed = {"fp8": torch.arange(256, dtype=torch.uint8, device=DEVICE).view(1, 1, 1, 256), "scales": 448 * one, "shifts": 0 * one}
    from tqbench.kernels.runs import _triton

    found = _triton._coefficients(_triton._ready(codec, str(packed["fp8"].device)), packed).flatten().cpu()
    wanted = packed["fp8"].view(torch.float8_e4m3fn).float().flatten().cpu()
    assert torch.equal(found.nan_to_num(nan=7e5), wanted.nan_to_num(nan=7e5))


def test_other_arrays_than_the_codec_packs_are_refused() -> None:
    from tqbench.kernels.runs import _triton

    codec, x = paper(), gaussian(1, 2, 3, 64).to(DEVICE)
    packed = _triton.encode(codec, x)
    for wrong in (
        {**packed, "int4": packed["int4"][..., 1:]},
        {**packed, "scales": packed["scales"].float()},
        {"scales": packed["scales"]},
    ):
        with pytest.raises(EvidenceError, match="refused its arguments"):
            _triton.decode(codec, wrong, 64)
    with pytest.raises(EvidenceError, match="learned for"):
        _triton.encode(codec, x[..., :32])


# --- both


def lite() -> KvtcLite:
    return KvtcLite(bits=3.75, section=32).calibrate(gaussian(1, 2, 300, 64) * torch.logspace(0, -1, 64))


@pytest.mark.parametrize("codec", [lite(), paper(sizes=(1, 64))], ids=lambda codec: codec.name)
def test_what_is_not_finite_is_not_hidden(codec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x = gaussian(1, 2, 96, 64).to(DEVICE)
    x[0, 1, 40, 3], x[0, 0, 70, 5] = float("nan"), float("inf")
    if DEVICE == "cpu":  # a GPU's maximum leaves NaN out, the interpreter's does not
        from triton.runtime import interpreter

        builder = interpreter.InterpreterBuilder
        monkeypatch.setattr(builder, "create_maxnumf", lambda self, a, b: self.binary_op(a, b, np.fmax))
        monkeypatch.setattr(builder, "create_minnumf", lambda self, a, b: self.binary_op(a, b, np.fmin))
    warnings.simplefilter("ignore", RuntimeWarning)  # the interpreter's
    packed = encode.OP.resolve(codec, "triton", GPU).fn(codec, x)
    back = decode.OP.resolve(codec, "triton", GPU).fn(codec, packed, 64, x[:, :, :0])
    lost = (~torch.isfinite(back)).any(-1).any(1)[0].tolist()
    unit = codec.unit
    assert lost == [t // unit in {40 // unit, 70 // unit} for t in range(96)]


@pytest.mark.parametrize("codec", [lite(), paper(sizes=(1, 64))], ids=lambda codec: codec.name)
def test_tables_come_to_the_device_once(codec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy from the host's memory waits for the device."""
    x = gaussian(1, 2, 32, 64).to(DEVICE)
    there, back = (op.resolve(codec, "triton", GPU).fn for op in (encode.OP, decode.OP))
    first = back(codec, there(codec, x), 64, x)
    for name in ("tensor", "as_tensor", "from_numpy", "arange"):
        monkeypatch.setattr(torch, name, None)
    monkeypatch.setattr(Learned, "__getitem__", None)
    assert torch.equal(back(codec, there(codec, x), 64, x), first)
    assert len(codec.learned.made) in (1, 2), "they go with what was learned"


def test_controls_and_codecs_that_have_not_learned_are_refused() -> None:
    x = gaussian(1, 2, 128, 64).to(DEVICE)
    for op in (encode.OP, decode.OP):
        assert op.resolve(Bridge(paper()), "auto", GPU).impl != "triton"
    for codec in (KvtcPaper(span=2), KvtcLite()):
        with pytest.raises(Unsupported, match="must be calibrated"):
            encode.OP.resolve(codec, "triton", GPU).fn(codec, x)


COMPILE = """
from tqbench.bench import ahead, kvtc
for scheme, what, call in kvtc.launches(128):
    for one in ahead._for("sm_90", scheme, 128, [(what, call)]):
        print(scheme, one.kernel.replace(" ", "/"), one.spilled, one.fits)
"""


def test_every_kernel_compiles_and_spills_nothing(tmp_path: Path) -> None:
    """In a process that does not interpret: what runs there, such as tuples of constants, need not compile."""
    given = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env = given | {"TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert {(scheme, kernel) for scheme, kernel, *_ in lines} == {
        *(("kvtc_lite", kernel) for kernel in ("encode/quantize", "encode/pack", "decode/unpack", "decode/dequantize")),
        *(("kvtc_paper", kernel) for kernel in ("encode/squeeze", "decode/expand")),
    }
    assert len(lines) == 4 + 2 * len(runs.kinds())
    assert {(spilled, fits) for _, _, spilled, fits in lines} == {("0", "True")}
