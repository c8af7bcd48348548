"""Every codec that a preset or a composition uses, against every codec check."""

import pytest

from tqbench.core import registry
from tqbench.core.presets import presets
from tqbench.testing import codec_cases

MORE = [
    {
        "name": "affine",
        "k": {"codec": "affine", "bits": 8, "group_size": 64, "axis": "channel"},
        "v": {"codec": "affine", "bits": 4, "group_size": 16},
    },
    {
        "name": "plain",
        "k": {"codec": "codebook", "bits": 1, "rotation": "hadamard"},
        "v": {"codec": "codebook", "bits": 4, "rotation": "none", "scale": "raw"},
    },
    {
        "name": "wide",
        "k": {"codec": "codebook", "bits": 3, "scale": "raw"},
        "v": {"codec": "codebook", "bits": 2, "pad": 128, "reserved": 2},
    },
    {
        "name": "angles",
        "k": {"codec": "polar_pairs", "radius_bits": 3, "angle_bits": 3},
        "v": {"codec": "polar", "first_bits": 8, "upper_bits": 4},
    },
    {
        "name": "across heads",
        "k": {"codec": "block", "bits": 4, "rotation": "cross_head"},
        "v": {"codec": "codebook", "bits": 3, "rotation": "cross_head", "group": 0},
    },
    {
        "name": "learned",
        "k": {"codec": "qjl", "outliers": 0},
        "v": {"codec": "nonuniform", "outliers": 0.0, "rotation": "haar", "center": True},
    },
]
CASES = codec_cases([*presets(), *MORE])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_codec(case):
    case.run()


def test_no_codec_is_left_out():
    assert {case.subject.plain.name for case in CASES} == set(registry.codecs())
