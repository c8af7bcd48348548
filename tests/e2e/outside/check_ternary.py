"""The three lines that give an outside scheme every conformance check."""

import pytest

from tqbench.testing import cases


@pytest.mark.parametrize("case", cases(["ternary"]), ids=str)
def test_ternary(case):
    case.run()
