"""What an outside package sees: its codec and scheme arrive by entry points, and three lines of test bring all checks."""

import doctest
import os
import subprocess
import sys

import tqbench.testing

FILES = {
    "halves.py": '''
"""Every second channel is kept, twice."""
from dataclasses import dataclass
from typing import ClassVar
from tqbench.core.codec import Codec, Layout, Part
from tqbench.core.lazy import torch

@dataclass(frozen=True)
class Halves(Codec):
    name: ClassVar[str] = "halves"
    source: ClassVar[str] = "an outside package"

    def layout(self, head_dim):
        return Layout(1, (Part("values", "float16", (head_dim // 2,)),))

    def quantize(self, y):
        return {"values": y[..., ::2].to(torch.float16).contiguous()}

    def dequantize(self, packed, dtype):
        return packed["values"].to(dtype).repeat_interleave(2, -1) * 0.6

PRESETS = {"mine": {"k": {"codec": "halves", "window": 4}, "v": "q8_0", "source": "an outside package"}}
''',
    "halves-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: halves\nVersion: 1.0\n",
    "halves-1.0.dist-info/entry_points.txt": "[tqbench.codecs]\nhalves = halves:Halves\n[tqbench.schemes]\nhalves = halves:PRESETS\n",
    "test_mine.py": """
import pytest
from tqbench.testing import cases

@pytest.mark.parametrize("case", cases(["mine"]), ids=str)
def test_mine(case):
    case.run()
""",
}


def run(tmp_path, *command):
    env = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)


def write(tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)


def test_an_outside_package_gets_all_checks_in_three_lines(tmp_path):
    write(tmp_path, FILES)
    done = run(tmp_path, "-m", "pytest", "-v", "test_mine.py")
    assert done.returncode == 0, done.stdout
    for passed in (
        "mine-chunks",
        "mine-identity",
        "halves-append_equals_batch",
        "decode/native for mine-choice",
        "attend/torch for mine-reference",
    ):
        assert f"[{passed}] PASSED" in done.stdout


def test_an_outside_package_with_a_fault_is_told(tmp_path):
    faulty = FILES["halves.py"].replace("(head_dim // 2,)", "(head_dim // 4,)")
    write(tmp_path, FILES | {"halves.py": faulty})
    done = run(tmp_path, "-m", "pytest", "-q", "test_mine.py", "-k", "halves-layout")
    assert done.returncode == 1
    assert "values is [2, 3, 2, 32], declared [2, 3, 2, 16]" in done.stdout


def test_importing_the_checks_is_cheap(tmp_path):
    done = run(tmp_path, "-c", "import sys, tqbench.testing; print(sorted({'torch', 'transformers', 'pytest', 'mlx'} & set(sys.modules)))")
    assert done.stdout == "[]\n", done.stderr


def test_the_example_in_the_documentation_runs():
    result = doctest.testmod(tqbench.testing)
    assert result.attempted
    assert not result.failed
