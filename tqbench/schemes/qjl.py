"""QJL: keys as sign sketches with outlier channels, values in 2 bits, the last 128 tokens exact, a wider sketch in the first 15 layers."""

from __future__ import annotations

from typing import Any


def _sides(sketch: int, outlier_sketch: int) -> dict[str, Any]:
    return {
        "k": {"codec": "qjl", "sketch": sketch, "outliers": 8, "outlier_sketch": outlier_sketch, "flush": 128},
        "v": {"codec": "affine", "bits": 2, "group_size": 32, "axis": "token", "window": 128},
    }


def _qjl(general: tuple[int, int], first: tuple[int, int], note: str) -> dict[str, Any]:
    return {
        **_sides(*general),
        "layers": [{"first": 15, "scheme": {"name": "first layers", **_sides(*first)}}],
        "source": "arXiv 2406.03482; amirzandieh/QJL @ 421d61cb",
        "note": note,
    }


PRESETS = {
    "qjl": _qjl((2, 1), (4, 2), "advertised as 3 bits; at head_dim 128 K takes 3.27 (6.27 in the first 15 layers), V 3"),
    "qjl_longbench": _qjl((2, 2), (4, 1), "the outlier sketches of the project's script: K 4.27 bits (5.27 in the first 15 layers), V 3"),
}
