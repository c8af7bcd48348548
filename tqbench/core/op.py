"""An operation and its implementations: which forms exist, which can run here, and why the others cannot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqbench.core.codec import Codec
from tqbench.core.errors import Unsupported


@dataclass(frozen=True)
class Place:
    """Where an operation runs."""

    platform: str = "torch"
    device: str = "cpu"
    dtype: str = "float32"
    head_dim: int | None = None
    pre_rope: bool = False  # whether what is packed must be turned by its position before it is attended


def _serves_all(codec: Codec, place: Place) -> None:  # noqa: ARG001 - the default for `Impl.refuses`
    return None


@dataclass(frozen=True)
class Impl:
    """One form of an operation. `refuses` returns the reason why it cannot serve a codec here, or None."""

    name: str
    load: Callable[[], Callable[..., Any]]
    refuses: Callable[[Codec, Place], str | None] = _serves_all
    platform: str = "torch"
    error: float = 0.0  # relative, that its arithmetic adds on purpose to the rounding of the dtype
    exact_in: tuple[str, ...] = ()  # dtypes in which it adds none
    fills: bool = False  # takes, as one argument more, the arrays that its result may be written into

    def off(self, dtype: str) -> float:
        """What it adds in this dtype."""
        return 0.0 if dtype in self.exact_in else self.error


@dataclass(frozen=True)
class Op:
    """An operation; `impls` are listed fastest first and the last one is the reference."""

    name: str
    impls: tuple[Impl, ...]

    def resolve(self, codecs: Codec | Sequence[Codec], wanted: str = "auto", place: Place = Place()) -> Choice:
        """Pick the named form, or for `auto` the first that can run on all of these codecs. A named form that cannot run is an error that
        says why."""
        every = [codecs] if isinstance(codecs, Codec) else list(codecs)
        refused: dict[str, str] = {}
        impls = [impl for impl in self.impls if impl.platform == place.platform]
        for impl in impls:
            if wanted not in ("auto", impl.name):
                continue
            reason = next((why for codec in every if (why := impl.refuses(codec, place)) is not None), None)
            if reason is None:
                return Choice(self.name, impl.name, impl.load(), refused, error=impl.off(place.dtype), fills=impl.fills)
            refused[impl.name] = reason
        if wanted in refused:
            raise Unsupported(f"{self.name}: the {wanted} form cannot run: {refused[wanted]}")
        if wanted == "auto":
            raise Unsupported(f"{self.name}: no form can run: " + "; ".join(f"{name}: {why}" for name, why in refused.items()))
        raise Unsupported(
            f"{self.name} has no {place.platform} form called {wanted!r} (it has: auto, {', '.join(impl.name for impl in impls)})"
        )


@dataclass
class Choice:
    """A resolved form, with the count of how often it was entered and why faster ones were passed over."""

    op: str
    impl: str
    fn: Callable[..., Any]
    refused: dict[str, str] = field(default_factory=dict)
    calls: int = 0
    error: float = 0.0
    fills: bool = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it and count it."""
        self.calls += 1
        return self.fn(*args, **kwargs)
