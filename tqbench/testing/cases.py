"""Which checks meet which subjects. The checks are imported when cases are asked for, so that importing tqbench.testing stays cheap.

What another library runs has checks of its own: our store, codecs and kernels never meet it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tqbench.core.codec import Codec
from tqbench.core.presets import presets, read
from tqbench.core.scheme import Scheme
from tqbench.testing.backend_checks import Backend

Wanted = str | Mapping[str, Any] | Scheme  # a preset's name, a mapping as it stands in a suite, or a scheme


@dataclass(frozen=True)
class Case:
    """One check on one subject; its text is the test's id."""

    check: Callable[[Any], None]
    subject: Any
    label: str

    def run(self) -> None:
        """Return if the fact holds; raise AssertionError if not."""
        self.check(self.subject)

    def __str__(self) -> str:
        return f"{self.label}-{self.check.__name__.removeprefix('check_')}"


def cases(schemes: Iterable[Wanted] | None = None) -> list[Case]:
    """All checks of these schemes, of their codecs and of the kernels that run them; without an argument, of every preset."""
    chosen = _schemes(schemes)
    return [*scheme_cases(chosen), *codec_cases(chosen), *kernel_cases(chosen)]


def scheme_cases(schemes: Iterable[Wanted] | None = None) -> list[Case]:
    """The checks of schemes: their text, their policy, and a real store under them."""
    from tqbench.testing import peer_checks
    from tqbench.testing.scheme_checks import checks_for

    chosen = _schemes(schemes)
    return [Case(c, one, one.label) for one in chosen for c in (peer_checks.scheme_checks() if one.peer else checks_for(one))]


def codec_cases(schemes: Iterable[Wanted] | None = None) -> list[Case]:
    """The checks of every codec that these schemes use, each codec once."""
    from tqbench.testing import peer_checks
    from tqbench.testing.codec_checks import checks_for

    chosen = _codecs(_schemes(schemes))
    return [Case(c, one, _label(one)) for one in chosen for c in (peer_checks.codec_checks() if one.tags.peer else checks_for(one))]


def kernel_cases(schemes: Iterable[Wanted] | None = None) -> list[Case]:
    """The checks of every fast form of every operation, as these schemes would use it."""
    from tqbench.testing.kernel_checks import checks_for, forms

    ours = [scheme for scheme in _schemes(schemes) if not scheme.peer]
    return [Case(check, form, str(form)) for scheme in ours for form in forms(scheme) for check in checks_for(form)]


def backend_cases(backend: Backend) -> list[Case]:
    """The checks of a backend."""
    from tqbench.testing.backend_checks import checks_for

    return [Case(check, backend, backend.name) for check in checks_for(backend)]


def _schemes(wanted: Iterable[Wanted] | None) -> list[Scheme]:
    return [_scheme(one) for one in (presets() if wanted is None else wanted)]


def _scheme(wanted: Wanted) -> Scheme:
    return wanted if isinstance(wanted, Scheme) else read(wanted)


def _codecs(schemes: Iterable[Scheme]) -> list[Codec]:
    return list(dict.fromkeys(side.codec for scheme in schemes for one in scheme.variants() for side in (one.k, one.v)))


def _label(codec: Codec) -> str:
    """The codec's name and the parameters that are not the default."""
    return " ".join([codec.plain.name, *(f"{name}={value}" for name, value in codec.data().items())])
