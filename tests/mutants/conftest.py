"""What the tests of all checks share."""

import pytest


@pytest.fixture
def all_checks():
    """Every check that a module defines."""
    return lambda module: {value for name, value in vars(module).items() if name.startswith("check_")}
