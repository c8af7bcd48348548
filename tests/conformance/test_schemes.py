"""Every preset, and compositions that use all of the policy, against every scheme check."""

import pytest

from tqbench.core.presets import presets
from tqbench.testing import scheme_cases

WINDOWED = {"codec": "affine", "bits": 2, "axis": "channel", "window": 40, "flush": 64}
COMPOSED = [
    "q8_0/turbo3",
    "f32/q4_0",
    {"name": "sinks", "k": {"codec": "block", "bits": 4, "window": 5, "flush": 3}, "v": "q8_0", "sinks": 4, "window": 9},
    {"name": "protected", "k": WINDOWED, "v": "turbo2", "sinks": 3, "protect": {"first": 1, "last": 1, "scheme": "f32"}},
    {
        "name": "mixed",
        "k": {"codec": "codebook", "bits": 3, "order": "interleaved"},
        "v": "kivi4",
        "protect": {"first": 2, "scheme": "q8_0"},
    },
    {"scheme": "turbo3", "bypass": "identity"},
    {"scheme": "q4_0", "bypass": "bridge"},
]


@pytest.mark.parametrize("case", scheme_cases([*presets(), *COMPOSED]), ids=str)
def test_scheme(case):
    case.run()
