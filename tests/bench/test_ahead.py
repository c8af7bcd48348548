"""Triton kernels compiled for GPUs that are not here: by the code that launches them, in a process that does not interpret them."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tqbench.kernels import triton

pytestmark = pytest.mark.skipif(triton.missing() is not None, reason=str(triton.missing()))
COMPILE = """
import csv, sys
from tqbench.bench import ahead
lines = csv.writer(sys.stdout)
for one in ahead.compile_all(ahead.wanted(sys.argv[1], sys.argv[2] or None)):
    lines.writerow([one.kernel, one.gpu, one.registers, one.spilled, one.shared, one.fits, one.per_value])
"""


def compiled(tmp_path: Path, schemes: str, gpus: str = "") -> list[list[str]]:
    given = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, schemes, gpus],
        env=given | {"TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return list(csv.reader(io.StringIO(done.stdout)))


def test_every_kernel_compiles_for_every_gpu_and_fits_there(tmp_path: Path) -> None:
    found = compiled(tmp_path, "turbo4")
    kernels = {(kernel, gpu) for kernel, gpu, *_ in found}
    names = ("encode encode", "decode unpack", *(f"{use} {what}" for use in ("prefill", "attend") for what in ("turn", "partial", "merge")))
    assert kernels == {(kernel, gpu) for kernel in names for gpu in ("sm_80", "sm_86", "sm_90", "sm_100", "sm_120")}
    for kernel, gpu, registers, spilled, _, fits, per_value in found:
        assert fits == "True", (kernel, gpu)
        assert 0 < int(registers) <= 255
        if kernel == "attend partial":
            assert int(spilled) <= 64, f"{kernel} spills {spilled} bytes on {gpu}"  # a register or two of the next tile
            assert 4 < float(per_value) < 6.5, f"{per_value} instructions for each value on {gpu}: 15.6 are slower than to read bf16"


PAIRED = """
import re, sys
from tqbench.bench import ahead
for gpu in ahead.GPUS:
    for what, call in ahead._calls("turbo3", 128):
        found = []
        with ahead._collected(found) as absent:
            absent.arch = int(gpu.removeprefix("sm_"))
            call()
        for name, made in found:
            text = made.asm["ttgir"]
            for layout in re.findall(r"tt.elementwise_inline_asm.*?-> tensor<[0-9x]+xf16, #(\\w+)>", text):
                size = re.search(rf"#{layout} = #ttg.blocked<{{sizePerThread = \\[\\d+, (\\d+)\\]", text)
                print(gpu, what, size[1])
"""


def test_pairs_of_bytes_that_share_one_of_the_high_plane_lie_in_one_thread(tmp_path: Path) -> None:
    """The text of three bits takes every other byte's last bits from the upper half: that holds where threads own pairs of columns."""
    given = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", PAIRED],
        env=given | {"TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [line.split() for line in done.stdout.splitlines()]
    assert {(gpu, what) for gpu, what, _ in found} == {(f"sm_{n}", what) for n in (80, 86, 90, 100, 120) for what in ("prefill", "attend")}
    assert all(int(size) % 2 == 0 for *_, size in found)


@pytest.mark.parametrize("schemes", ["q8_0/turbo3", "q5_1/kivi2", "fp8_e4m3", "mlx4_g64", "vllm_3bit_nc"])
def test_other_formats_compile_too(tmp_path: Path, schemes: str) -> None:
    found = compiled(tmp_path, schemes, "sm_90")
    assert {kernel for kernel, *_ in found} >= {"decode unpack", "prefill partial", "attend partial", "attend merge"}
    assert all(fits == "True" for *_, fits, _ in found)


def test_what_is_interpreted_is_not_compiled() -> None:
    given = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-m", "tqbench", "kernels", "compile"], env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "TRITON_INTERPRET" in done.stderr
