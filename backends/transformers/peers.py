"""transformers' own quantized caches, run as themselves and watched.

optimum-quanto compiles a C++ extension the first time it decodes, into its own folder, and looks for `ninja` on PATH; a worker may have
been started without one, so the interpreter's scripts are put on it. The extension is made when a cache is opened, not in a forward call.
"""

from __future__ import annotations

import os
import sysconfig
import warnings
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor
from transformers import cache_utils
from transformers.cache_utils import CacheLayerMixin, QuantizedCache, QuantizedLayer

from backends.transformers.cache import BaselineCache
from tqbench.cache.arrays import TorchArrays
from tqbench.cache.build import Layer, Shape
from tqbench.cache.peer import Held, NotSaved, Policy, Watch, admit
from tqbench.core.errors import Unsupported
from tqbench.core.evidence import SideEvidence, kept
from tqbench.core.scheme import Scheme
from tqbench.core.session import Terms
from tqbench.measure.stages import stage

PACKAGES = {"quanto": ("optimum-quanto", "ninja"), "hqq": ("hqq",), "fp8": ()}
OLDEST = {"quanto": "5.20", "hqq": "5.20", "fp8": "5.22"}  # of transformers: before, the residual was packed by another rule, and no fp8
AXIS = {"quanto": 0, "hqq": 1}  # of consecutive channels
NAMES = {"quanto": "quanto", "hqq": "hqq", "fp8": "transformers"}


class PeerCache(NotSaved, QuantizedCache):
    """transformers' quantized cache, each of its layers watched."""

    layers: list[Any]

    def __init__(self, config: Any, shape: Shape, device: str, scheme: Scheme, terms: Terms):
        codec = admit(scheme, shape, terms, "transformers")
        require(codec.library)
        try_out(codec.library, device)
        groups = {"nbits": codec.bits, "q_group_size": codec.group_size, "residual_length": codec.residual}
        axis = AXIS.get(codec.library)
        try:
            super().__init__(codec.library, config, **({} if axis is None else {**groups, "axis_key": axis, "axis_value": axis}))
        except ValueError as error:
            raise Unsupported(f"transformers' QuantizedCache does not take this model: {error}") from error
        policy = partial(Policy, codec, terms.protocol)
        name = NAMES[codec.library]
        self.layers = [
            PeerLayer(own, Watch(codec, Layer(index, index), shape, TorchArrays(device), policy(), name, "engine", quiet=terms.quiet))
            for index, own in enumerate(self.layers)
        ]
        self.stores = [layer.watch for layer in self.layers]

    def evidence(self) -> list[SideEvidence]:
        """Per layer and side, what the library holds and what was read."""
        return [side for layer in self.layers for side in layer.evidence()]

    def take(self, context: BaselineCache) -> None:
        """Take over what the model's own cache holds."""
        for index, layer in enumerate(self.layers):
            keys, values, _ = context.piece(index)
            layer.update(keys, values)
            layer.watch.unattended()

    def verify(self) -> None:
        """What the library gave out was compared at its first packed call; its attention is the engine's."""

    def kv_bytes(self) -> int:
        """Bytes of all keys and values that are kept."""
        return kept(self.evidence())

    def check(self, tokens: int) -> None:
        """Raise if any layer's queries did not read what the library gave out."""
        for watch in self.stores:
            watch.check(tokens)


class PeerLayer(CacheLayerMixin):
    """A layer of transformers' quantized cache. What goes in and what comes out is counted; the rest is the layer's own."""

    is_compileable = False
    is_croppable = False

    def __init__(self, own: Any, watch: Watch):
        super().__init__()
        self.own, self.watch, self.compared = own, watch, False
        self.is_initialized = True  # the layer inside sees to itself

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """The layer inside does."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The library's own, with what attention is handed marked."""
        self._fit(key_states)
        before, known = self._packed(), self.own._quantized_keys
        self.watch.bring(key_states, value_states)
        with stage("append"):
            given: tuple[Tensor, Tensor] = self.own.update(key_states, value_states, *args, **kwargs)
        self.watch.calls["encode"] += self.own._quantized_keys is not known
        # The library gives the first tokens back as they came, then what it had packed before the call, and fp8 what it packs in it.
        end = 0 if given[0] is key_states else before if isinstance(self.own, QuantizedLayer) else self._packed()
        if end and not self.compared:
            self.watch.compare("k", given[0], end)
            self.watch.compare("v", given[1], end)
            self.compared = True
        given[0].tqbench_read = partial(self.watch.read, packed_end=end)  # type: ignore[attr-defined]
        return given

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        sizes: tuple[int, int] = self.own.get_mask_sizes(query_length)
        return sizes

    def get_seq_length(self) -> int:
        return int(self.own.get_seq_length())

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        raise Unsupported("a watched cache holds one sequence; make a new one")

    def crop(self, tokens_to_remove: int) -> None:  # noqa: ARG002
        raise Unsupported("a watched cache cannot forget tokens")

    def _packed(self) -> int:
        """Tokens in packed form."""
        held = self.own._quantized_keys
        return 0 if held is None else _tokens(held)

    def _fit(self, keys: Tensor) -> None:
        """hqq splits groups into equal parts that share bytes, and mixes them up if they are not equal."""
        codec, held = self.watch.codec, self.watch.tokens
        total, waiting = held + keys.shape[2], held - self._packed() + keys.shape[2]
        groups = codec.groups(total, keys.shape[1], keys.shape[3])
        packs = codec.library == "hqq" and (not held or waiting >= codec.residual)
        if packs and groups % codec.per_byte:
            parts = f"{total} tokens are {groups} groups of {codec.group_size} channels, hqq shares bytes between {codec.per_byte}"
            raise Unsupported(f"hqq cannot pack {parts}; choose a context and a chunk that are multiples of {codec.per_byte}")

    def evidence(self) -> tuple[SideEvidence, SideEvidence]:
        """What happened to K and to V."""
        return self.watch.evidence("k", self._held("keys")), self.watch.evidence("v", self._held("values"))

    @torch.inference_mode()
    def _held(self, side: str) -> Held:
        packed, recent = getattr(self.own, f"_quantized_{side}"), getattr(self.own, side)
        if packed is None:
            return Held()
        codes, metadata, tables = _arrays(packed)
        sizes = (codes.nbytes, sum(array.nbytes for array in metadata), sum(array.nbytes for array in tables))
        return Held(_tokens(packed), *sizes, exact=recent.nbytes, decoded=self.own._dequantize(packed))


def _tokens(packed: Any) -> int:
    """hqq has the shape beside its codes, the others are as long as what they stand for."""
    if not isinstance(packed, tuple):
        return int(packed.shape[2])
    codes, about = packed
    return int((about["shape"] if isinstance(about, dict) else codes.shape)[2])


def _arrays(packed: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The codes, what each group has beside them, and what all share, as each library keeps them."""
    if not isinstance(packed, tuple):
        return packed._data._data, [packed._scale, packed._shift], []
    codes, about = packed
    return (codes, [about["scale"], about["zero"]], []) if isinstance(about, dict) else (codes, [], [about])


def require(library: str) -> None:
    """Raise Unsupported with the command to run if a package is not installed or too old."""
    missing = [package for package in PACKAGES[library] if not _installed(package)]
    if missing:
        raise Unsupported(f'the cache of {library} needs {" and ".join(missing)}; install with: pip install "tqbench[peers]"')
    found = version("transformers")
    if Version(found) < Version(OLDEST[library]):
        older = f"needs transformers {OLDEST[library]} or later, here is {found}"
        raise Unsupported(f"the cache of {library} {older}; update with: pip install -U transformers")


def _installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


@cache
def try_out(library: str, device: str) -> None:
    """Import the library and pack a few tokens, once per process, so that what it builds or lacks is known before anything runs."""
    if library == "quanto":
        find_programs()
    tokens = torch.ones(1, 1, 8, 64, device=device)
    layers = {"quanto": "QuantoQuantizedLayer", "hqq": "HQQQuantizedLayer", "fp8": "Fp8QuantizedLayer"}
    axis = {} if library == "fp8" else {"axis_key": AXIS[library], "axis_value": AXIS[library]}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other people's imports and compilers
            layer = getattr(cache_utils, layers[library])(**axis)
            layer.update(tokens, tokens)
            layer.update(tokens, tokens)
    except (ImportError, OSError, RuntimeError) as error:
        lines = [line for line in str(error).splitlines() if "error:" in line] or [f"{type(error).__name__}: {error}"]
        raise Unsupported(f"{library} does not run here: {lines[0][:300]}") from error


def find_programs() -> None:
    """Put the interpreter's scripts, where pip leaves ninja, behind whatever PATH there is; gcc itself fails without any."""
    path = os.environ.get("PATH") or os.defpath
    scripts = sysconfig.get_path("scripts")
    os.environ["PATH"] = path if scripts in path.split(os.pathsep) else os.pathsep.join([path, scripts])
