"""`tqbench bench` as a user meets it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def bench(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tqbench", "bench", *args]
    return subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, encoding="utf-8", check=False
    )


def test_a_benchmark_prints_its_table_and_writes_its_files(tmp_path: Path) -> None:
    done = bench("--shape", "kv1 q2 d64", "--tokens", "32", "--schemes", "turbo4", "--rounds", "1", "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    for said in ("turbo4/naive", "turbo4/torch", "sdpa bf16", "× best torch", "best torch row: ", "limit %", "32 tokens"):
        assert said in done.stdout
    assert json.loads((tmp_path / "out" / "bench.json").read_text())["ceiling"]["threads"] == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"bench.{kind}" for kind in ("json", "csv", "md", "svg", "png")}


def test_nonsense_ends_with_every_mistake_and_code_2() -> None:
    done = bench("atend", "--tokens", "many", "--schemes", "turbo44")
    assert done.returncode == 2
    for said in ("did you mean 'attend'", "'many' is not a number of tokens", "did you mean 'turbo4'"):
        assert said in done.stderr
