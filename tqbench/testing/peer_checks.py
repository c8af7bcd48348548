"""What another library's cache owes as a scheme: it is data, it says which models it takes, and nothing of ours runs it in its place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from tqbench.core.codec import Codec
from tqbench.core.presets import preset
from tqbench.core.scheme import Layers, Scheme
from tqbench.testing.codec_checks import check_identity_card
from tqbench.testing.refusal import refusal
from tqbench.testing.samples import HEAD_DIMS, gaussian
from tqbench.testing.scheme_checks import check_data_round_trip, check_yaml_round_trip


def scheme_checks() -> Iterator[Callable[[Scheme], None]]:
    """The checks of a scheme that another library runs."""
    yield from (check_data_round_trip, check_yaml_round_trip, check_runs_alone, check_runs_somewhere)


def codec_checks() -> Iterator[Callable[[Codec], None]]:
    """The checks of its codec."""
    yield from (check_identity_card, check_head_dims, check_never_encodes)


def check_runs_alone(scheme: Scheme) -> None:
    """Whatever our store would add is refused by its key: the library runs as it is."""
    windowed = dataclasses.replace(scheme.k, window=8)
    additions: dict[str, dict[str, Any]] = {
        "sinks": {"sinks": 4},
        "protect": {"protect": Layers(preset("q8_0"), first=1)},
        "bypass": {"bypass": "identity"},
        "k.window": {"k": windowed},
        "k and v that differ": {"v": preset("q8_0").v},
    }
    for key, changes in additions.items():
        reason = refusal(dataclasses.replace(scheme, **changes).check, _taken(scheme.k.codec)[0])
        assert reason is not None, f"{scheme.label} takes {key}, which its library does not know"
        assert key in reason, f"{scheme.label} refuses {key} without naming it: {reason}"


def check_runs_somewhere(scheme: Scheme) -> None:
    """It names the one backend that it runs on, and under protocol deploy it runs there."""
    tags = scheme.k.codec.tags
    assert tags.backend, f"{scheme.label} does not say which backend it runs on"
    assert refusal(scheme.check_run, tags.backend, "deploy") is None, f"{scheme.label} runs under no protocol on {tags.backend}"
    elsewhere = refusal(scheme.check_run, "elsewhere", "deploy") or ""
    assert f"backend: {tags.backend}" in elsewhere, f"{scheme.label} is not refused on other backends by naming its own: {elsewhere}"


def check_head_dims(codec: Codec) -> None:
    """A head_dim is either taken, with a layout, or refused with a sentence that names it."""
    for head_dim in (*HEAD_DIMS, 40, 112, 192, 512):
        reason = refusal(codec.check, head_dim)
        if reason is None:
            assert codec.layout(head_dim).nbytes > 0, f"{codec} stores nothing at head_dim {head_dim}"
        else:
            assert str(head_dim) in reason, f"{codec} refuses head_dim {head_dim} without naming it: {reason!r}"
    assert _taken(codec), f"{codec} takes none of the head_dims {HEAD_DIMS}"


def check_never_encodes(codec: Codec) -> None:
    """Our store cannot run it by mistake: encoding is refused, so that no number is of our making."""
    head_dim = _taken(codec)[0]
    assert refusal(codec.encode, gaussian(1, 2, 4, head_dim)), f"{codec} encodes, though its library is to run it"


def _taken(codec: Codec) -> list[int]:
    return [head_dim for head_dim in HEAD_DIMS if refusal(codec.check, head_dim) is None]
