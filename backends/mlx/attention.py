"""Our attention in place of the engine's, in the modules where a model looks it up, while a session is open on it.

A call whose `cache` holds a store is answered by the store; anything else goes to the engine's own function unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from backends.mlx.cache import StoreLayer
from backends.mlx.peers import PeerLayer
from tqbench.core.errors import Unsupported
from tqbench.measure import stages

NAME = "scaled_dot_product_attention"
Names = dict[str, Any]  # the globals of a module


class Routed:
    """The engine's function with the calls that belong to a store taken out. It counts the sessions that need it."""

    def __init__(self, own: Callable[..., mx.array]):
        self.own, self.sessions = own, 0

    def __call__(
        self, queries: mx.array, keys: mx.array, values: mx.array, cache: Any, scale: float, mask: Any, **options: Any
    ) -> mx.array:
        if isinstance(cache, PeerLayer):
            cache.read(queries.shape[2], keys)
        if not isinstance(cache, StoreLayer) or cache.store.through_engine:
            with stages.stage("attend"):
                out = self.own(queries, keys, values, cache=cache, scale=scale, mask=mask, **options)
                if stages.timing():
                    mx.eval(out)
            return out
        given = [name for name, value in options.items() if value is not None]
        if given:
            raise Unsupported(f"this model's attention uses {', '.join(given)}, which schemes do not support yet")
        if not _expected(mask, queries.shape[2], cache.store.tokens, cache.store.layer.reach):
            raise Unsupported("this model masks keys in a way of its own, which schemes do not support yet")
        return cache.store.attend(queries, scale)


def _expected(mask: Any, queries: int, tokens: int, reach: int | None) -> bool:
    """Whether a mask lets each of the last queries see everything up to itself, in its sliding window, and nothing else."""
    if mask is None:
        return queries == 1
    if isinstance(mask, str):
        return mask == "causal" and (reach is None or tokens <= reach)
    keys = tokens if reach is None else min(tokens, reach - 1 + queries)
    if mask.dtype != mx.bool_ or mask.shape[-2:] != (queries, keys):
        return False
    at, keys_at = mx.arange(tokens - queries, tokens)[:, None], mx.arange(tokens - keys, tokens)
    expected = keys_at <= at if reach is None else (keys_at <= at) & (keys_at > at - reach)
    return bool((mask == expected).all())


def lookups(model: Any) -> list[Names]:
    """The globals in which this model's classes look the engine's function up."""
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    found = {id(names): names for cls in classes for f in vars(cls).values() if NAME in (names := getattr(f, "__globals__", {}))}
    return list(found.values())


def replace(where: list[Names]) -> None:
    """Put our function in, once, however many sessions ask."""
    for names in where:
        if not isinstance(names[NAME], Routed):
            names[NAME] = Routed(names[NAME])
        names[NAME].sessions += 1


def restore(where: list[Names]) -> None:
    """Put the engine's function back when the last session that needed ours closes."""
    for names in where:
        routed = names[NAME]
        if isinstance(routed, Routed):  # else someone wrapped ours meanwhile: leave theirs, ours only passes calls on
            routed.sessions -= 1
            if not routed.sessions:
                names[NAME] = routed.own
