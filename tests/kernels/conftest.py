"""What tests of kernels share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tqbench.core.errors import ConfigError
from tqbench.kernels import native


def _sets() -> list[str]:
    """The instruction sets that this processor runs; none without the library, and then the tests that ask for one are skipped."""
    found = []
    for name in ("avx512", "avx2", "scalar", "neon") if native.missing() is None else ():
        try:
            native.use(name)
            found.append(name)
        except ConfigError:
            continue
    if found:
        native.use("")
    return found


@pytest.fixture(params=_sets())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each of them in turn."""
    native.use(request.param)
    yield request.param
    native.use("")
