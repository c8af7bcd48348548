"""What takes part in a benchmark: something to call, how its output is judged, and what it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from tqbench.bench.result import Row
from tqbench.core.codec import Codec
from tqbench.core.errors import Unsupported
from tqbench.core.op import Impl, Op, Place


@dataclass
class Contender:
    """One row to be. `calls` do the same on copies of the same data, which lie in different memory."""

    row: Row
    calls: Sequence[Callable[[], Any]]
    error: Callable[[Any], float]
    rivals: tuple[str, ...] = ()  # names of the rows that its time is compared with
    staged: bool = False  # whether it marks stages

    def judge(self, output: Any) -> str | None:
        """Why the output is wrong, or None."""
        error = self.error(output)
        if self.row.implementation_error is None:
            self.row = replace(self.row, implementation_error=error)
        else:
            self.row = replace(self.row, implementation_error_after=error)
        limit = self.row.tolerance or 0.0
        return None if error <= limit else f"its output is off by {error:.2g} from the reference on the same data; {limit:.2g} is allowed"

    def drop(self, outcome: Any, reason: str) -> None:
        """It gets no time."""
        self.row = replace(self.row, outcome=outcome, reason=reason)


def forms(op: Op, place: Place, *codecs: Codec) -> Iterator[tuple[Impl, str | None]]:
    """Every form of an operation at this place, with the reason why it cannot serve these codecs."""
    for impl in op.impls:
        if impl.platform == place.platform:
            yield impl, next((reason for codec in codecs if (reason := impl.refuses(codec, place))), None)


def attempt(contender: Contender) -> Any:
    """The output of one call, or None: then it has been dropped with the reason."""
    try:
        return contender.calls[0]()
    except Unsupported as reason:
        contender.drop("unsupported", str(reason))
    except Exception as error:  # noqa: BLE001 - a form that breaks is a finding, and the others go on
        contender.drop("failed", f"{type(error).__name__}: {error}")
    return None


def relative(output: Tensor, truth: Tensor) -> float:
    """‖output − truth‖ / ‖truth‖ in float64; infinite if the shape is another or a value is not finite."""
    if output.shape != truth.shape:
        return float("inf")
    error = float((output.double() - truth.double()).norm() / truth.double().norm())
    return error if isfinite(error) else float("inf")


def twin(array: Tensor) -> Tensor:
    """An equal array in memory of its own with the same strides: a store's arrays have gaps, which forms must cope with."""
    return torch.empty_strided(array.shape, array.stride(), dtype=array.dtype, device=array.device).copy_(array)
