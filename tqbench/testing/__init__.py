"""The shipped conformance checks: what a scheme, its codecs, their kernels and a backend owe the rest of tqbench.

A check is a function `check_<fact>(subject)` of one fact; it passes by returning and names the object when it does not. A case is a check
with its subject. A package that ships a scheme, a codec or a backend gets all of them in three lines::

    from tqbench.testing import cases

    @pytest.mark.parametrize("case", cases(["mine"]), ids=str)
    def test_mine(case):
        case.run()

`cases` takes names of presets, mappings as they stand in a suite, and `Scheme` objects; without an argument it takes every installed
preset. It holds the checks of the schemes, of the codecs that they use, and of the kernels that run these codecs; `scheme_cases`,
`codec_cases` and `kernel_cases` give them apart. Nothing but this package is needed to run them:

    >>> from tqbench.testing import scheme_cases
    >>> mine = {"name": "mine", "k": {"codec": "block", "bits": 8, "window": 3}, "v": "q8_0", "sinks": 2}
    >>> print(*scheme_cases([mine])[:3], sep=", ")
    mine-data_round_trip, mine-yaml_round_trip, mine-head_dims
    >>> for case in scheme_cases([mine])[:3]:
    ...     case.run()

A backend brings a tiny random model of its own (see `Backend`)::

    @pytest.mark.parametrize("case", backend_cases(Backend("mine", make, open_session, logits, state)), ids=str)
    def test_backend(case):
        case.run()
"""

from tqbench.testing.backend_checks import Backend
from tqbench.testing.cases import Case, backend_cases, cases, codec_cases, kernel_cases, scheme_cases

__all__ = ["Backend", "Case", "backend_cases", "cases", "codec_cases", "kernel_cases", "scheme_cases"]
