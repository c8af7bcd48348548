"""Every fast form of every operation, on the codecs and policy of every preset and of one with everything switched on."""

import pytest

from tqbench.core.presets import presets
from tqbench.testing import kernel_cases

FULL = {"name": "full", "k": {"codec": "block", "window": 40, "flush": 7}, "v": {"codec": "affine", "bits": 4, "window": 9}, "sinks": 4}


@pytest.mark.parametrize("case", kernel_cases([*presets(), FULL]), ids=str)
def test_kernel(case):
    case.run()
