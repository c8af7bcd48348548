"""mlx-lm's own quantized cache, run as itself and watched.

Strict: quantized from the first token on. Its attention reads what is quantized at once, and each token is quantized by itself, so what a
query sees is a function of its position. Deploy: as mlx-lm's `generate` has it with `--quantized-kv-start 0`, where the cache is quantized
after the first forward call.
"""

from __future__ import annotations

from typing import Any, Literal

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.generate import maybe_quantize_kv_cache
from mlx_lm.models.cache import KVCache, QuantizedKVCache

from backends.mlx.arrays import MlxArrays
from backends.mlx.cache import BaselineCache, kv_layers
from tqbench.cache.build import Layer, Shape
from tqbench.cache.peer import Held, NotSaved, Policy, Watch, admit
from tqbench.core.errors import Unsupported
from tqbench.core.evidence import SideEvidence, kept
from tqbench.core.scheme import Scheme
from tqbench.core.session import ModelInfo, Terms

LIBRARY = "mlx-lm"


class PeerCache(NotSaved, list[Any]):
    """The model's own cache with mlx-lm's quantized one in every layer of full attention, each watched."""

    def __init__(self, own: list[Any], info: ModelInfo, scheme: Scheme, terms: Terms):
        super().__init__(own)
        shape = Shape(info.architecture, info.head_dim, info.dtype, info.kv_heads, info.heads)
        self.codec = admit(scheme, shape, terms, "mlx")
        held = kv_layers(own)
        if other := [index for index in held if type(own[index]) is not KVCache]:
            raise Unsupported(f"mlx-lm cannot quantize {type(own[other[0]]).__name__}, which this model keeps in layer {other[0]}")
        for position, index in enumerate(held):
            policy = Policy(self.codec, terms.protocol)
            arrays = MlxArrays(info.device)
            watch = Watch(self.codec, Layer(index, position), shape, arrays, policy, LIBRARY, LIBRARY, quiet=terms.quiet)
            kept = KVCache() if terms.protocol == "deploy" else QuantizedKVCache(self.codec.group_size, self.codec.bits)
            self[index] = PeerLayer(kept, watch)
        self.layers: list[PeerLayer] = [self[index] for index in held]
        self.stores = [layer.watch for layer in self.layers]

    def evidence(self) -> list[SideEvidence]:
        """Per layer and side, what the library holds and what was read."""
        return [side for layer in self.layers for side in layer.evidence()]

    def take(self, context: BaselineCache) -> None:
        """Take over what the model's own cache holds."""
        for layer in self.layers:
            layer.update_and_fetch(*context.piece(layer.watch.layer.index))
            layer.watch.unattended()
        self.check(self.stores[0].tokens)

    def verify(self) -> None:
        """Both the packing and the attention are the library's own."""

    def kv_bytes(self) -> int:
        """Bytes of all keys and values that are kept."""
        return kept(self.evidence())

    def check(self, tokens: int) -> None:
        """After a forward call: raise if any layer's queries did not read what the library gave out; then quantize, as `generate` does."""
        for watch in self.stores:
            watch.check(tokens)
        kept = [layer.own for layer in self.layers]
        maybe_quantize_kv_cache(kept, 0, self.codec.group_size, self.codec.bits)
        for layer, own in zip(self.layers, kept, strict=True):
            layer.watch.calls["encode"] += own is not layer.own
            layer.own = own
        mx.eval([layer.state for layer in self.layers])


class PeerLayer:
    """A layer of mlx-lm's cache. What goes in is counted; everything else is the layer's own, also `bits`, by which mlx-lm's attention
    knows that it is quantized."""

    def __init__(self, own: KVCache | QuantizedKVCache, watch: Watch):
        self.own, self.watch = own, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["own"], name)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        """The library's own. An empty quantized cache is filled through a plain one: mlx-lm makes room for the wrong number of words where
        32 is no multiple of the bits."""
        self.watch.bring(keys, values)
        if isinstance(self.own, QuantizedKVCache):
            self.watch.calls["encode"] += 1
            if self.own.empty():
                plain = KVCache()
                plain.update_and_fetch(keys, values)
                self.own = plain.to_quantized(self.own.group_size, self.own.bits)
                return self.own.keys_and_values()
        given: tuple[Any, Any] = self.own.update_and_fetch(keys, values)
        return given

    def read(self, queries: int, keys: Any) -> None:
        """Attention takes these keys: arrays of a quantized tensor, or plain ones."""
        self.watch.read(self.watch.layer.index, queries, self.watch.tokens if isinstance(keys, tuple | list) else 0)

    @property
    def state(self) -> list[mx.array]:
        """The arrays that exist, for mx.eval."""
        return [*self._arrays("keys"), *self._arrays("values"), *self.watch.samples.values()]

    def _arrays(self, side: str) -> list[mx.array]:
        return [array for _, array in tree_flatten(getattr(self.own, side)) if array is not None]

    def evidence(self) -> tuple[SideEvidence, SideEvidence]:
        """What happened to K and to V."""
        return self.watch.evidence("k", self._held("keys")), self.watch.evidence("v", self._held("values"))

    def _held(self, side: Literal["keys", "values"]) -> Held:
        if self.own.empty():
            return Held()
        arrays, tokens = self._arrays(side), self.own.offset
        sizes = [array[:, :, :tokens].nbytes for array in arrays]
        slack = sum(array.nbytes for array in arrays) - sum(sizes)
        if not isinstance(self.own, QuantizedKVCache):
            return Held(exact=sizes[0], slack=slack)
        words, scales, biases = arrays
        decoded = mx.dequantize(words, scales, biases, self.own.group_size, self.own.bits)
        return Held(tokens, payload=sizes[0], metadata=sum(sizes[1:]), slack=slack, decoded=decoded[:, :, :tokens])
