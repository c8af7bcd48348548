"""An mlx-lm model with a session open on it."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, NoReturn

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from backends import weights, words
from backends.mlx import attention
from backends.mlx.cache import BaselineCache, StoreCache, kv_layers
from backends.mlx.loading import load_weights
from backends.mlx.peers import PeerCache
from backends.scoring import Scoring
from tqbench.core.errors import Unsupported
from tqbench.core.scheme import Scheme
from tqbench.core.session import Exact, Floats, Ids, LocalModel, ModelInfo, Terms, TokenScores
from tqbench.core.state import State
from tqbench.measure import stages

DEVICES = {"cpu": mx.cpu, "gpu": mx.gpu}
PREFILL = 512  # tokens of a context that are run at once
DTYPES = ("float32", "bfloat16", "float16")


def load(model: LocalModel, device: str, dtype: str) -> MlxSession:
    """Load weights and tokenizer. Nothing is downloaded here."""
    if model.config is not None:
        raise Unsupported("random models are made by the transformers backend alone")
    here = [name for name in DEVICES if mx.is_available(DEVICES[name])]
    if device not in here:
        raise Unsupported(f"mlx has no device {device!r} here (it has: {', '.join(here)})")
    if dtype not in DTYPES:
        raise Unsupported(f"mlx computes norms and rotary positions in float32 at most, so there is no {dtype} (only {', '.join(DTYPES)})")
    folder = weights.directory(model)
    config, tokenizer = weights.settled(model, folder)
    own = getattr(config, "model_file", None)  # mlx-lm's way to bring an architecture along
    if own and not model.trust_remote_code:
        raise weights.untrusted(model, [str(own)])
    with mx.stream(DEVICES[device]):
        loaded = load_weights(folder, dtype, trust_remote_code=model.trust_remote_code)
    described = weights.describe(model, dtype)
    session = MlxSession(loaded, tokenizer, config, model.name, described, device)
    code = weights.remote_code(folder) if own else None
    session.info = replace(session.info, revision=model.revision, weights_sha256=model.sha256, remote_code=code)
    return session


class MlxSession(Scoring):
    """Runs tokens through the model with its own cache or with a scheme's stores."""

    def __init__(self, model: Any, tokenizer: Any, config: Any, name: str, described: str = "", device: str = "cpu"):
        self.model, self.tokenizer, self.device = model, tokenizer, DEVICES[device]
        facts: dict[str, Any] = {"name": name, "device": device, "weights": described, "bos_token": words.bos(tokenizer)}
        facts |= {"start_token": getattr(tokenizer, "bos_token_id", None), "stop_tokens": words.stops(tokenizer, config)}
        text_config = config.get_text_config(decoder=True)
        self.info, self.shared = _info(model, text_config, facts), getattr(text_config, "num_kv_shared_layers", 0)
        self.lookups = attention.lookups(model)
        attention.replace(self.lookups)
        self.close_once = weakref.finalize(self, attention.restore, self.lookups)  # also when a session is dropped without close

    def tokenize(self, text: str) -> Ids:
        """Token ids without special tokens."""
        return np.asarray(
            self.tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"], dtype=np.int64
        )

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Without special tokens, and without the tidying of spaces that some tokenizers do."""
        return str(self.tokenizer.decode([int(token) for token in tokens], skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def chat(self) -> tuple[Ids, Ids]:
        """Around a user's message."""
        return words.around_message(self.tokenizer, self.info.name)

    def weights_sha256(self) -> str:
        """Of all parameters. Frequencies of the rotary embedding are no parameters here."""
        with mx.stream(self.device):
            return weights.fingerprint(
                (f"{name} {x.shape} {x.dtype}", np.array(x.flatten()[:: weights.spread(x.size)].view(mx.uint8)).tobytes())
                for name, x in tree_flatten(self.model.parameters())
            )

    def new_cache(
        self, scheme: Scheme | None, terms: Terms = Terms(), context: BaselineCache | State | None = None
    ) -> BaselineCache | StoreCache | PeerCache:
        """A cache that is empty or holds a context; None is the model's own."""
        own = make_prompt_cache(self.model)
        if scheme is None:
            return self._own(context)
        if not self.lookups:
            raise Unsupported(f"architecture {self.info.architecture!r} does not call mlx-lm's {attention.NAME}, where schemes come in")
        if self.shared:
            raise Unsupported(f"{self.shared} layers of this model read the keys and values of others, which schemes do not support yet")
        cache = (PeerCache if scheme.peer else StoreCache)(own, self.info, scheme, terms)
        with mx.stream(self.device):
            if isinstance(context, State):
                cache.take_back(context)
            elif context is not None:
                cache.take(context)
        return cache

    def _own(self, context: BaselineCache | State | None) -> BaselineCache:
        """The model's own cache, empty or with a context."""
        if isinstance(context, BaselineCache):
            return copy.deepcopy(context)
        own = BaselineCache(make_prompt_cache(self.model))
        if context is not None:
            with mx.stream(self.device):
                own.take_back(context, self.info)
        return own

    def context(self, tokens: Ids) -> BaselineCache:
        """What the model's own cache holds after these tokens."""
        cache = BaselineCache(make_prompt_cache(self.model))
        for first in range(0, len(tokens), PREFILL):
            self.forward(tokens[first : first + PREFILL], cache, last=True)
        return cache

    def exact(self, context: BaselineCache) -> list[Exact]:
        """A context as arrays."""
        found = []
        with mx.stream(self.device):
            for index in kv_layers(context):
                k, v = (np.array(x[0].astype(mx.float32)) for x in context.piece(index))
                found.append(Exact(index, k, v, _key_bias(self.model, index, self.info)))
        return found

    def calibrate(self, windows: Sequence[Ids]) -> NoReturn:
        """Not here: codecs learn in torch, from a transformers session."""
        raise Unsupported(f"{len(windows)} windows of calibration text, but calibrated schemes run on the transformers backend only")

    def forward(self, tokens: Ids, cache: BaselineCache | StoreCache | PeerCache, *, last: bool = False) -> mx.array:
        """Logits [tokens, vocab]. mlx-lm's models compute those of all tokens if any are asked for, so `last` saves memory alone."""
        before = 0 if isinstance(cache, BaselineCache) else cache.stores[0].tokens
        with mx.stream(self.device), stages.stage("model"):
            logits = self.model(mx.array(tokens)[None], cache=cache)[0]
            logits = logits[-1:] if last else logits
            mx.eval(logits, [layer.state for layer in cache])
        if not isinstance(cache, BaselineCache):
            cache.check(before + len(tokens))
        return logits

    def choose(self, logits: mx.array) -> int:
        """The most likely token after the last one."""
        with mx.stream(self.device), stages.stage("choose"):
            return int(mx.argmax(logits[-1]))

    def stretch(self, tokens: Ids, cache: Any, together: int, recorder: Any) -> NoReturn:  # noqa: ARG002
        """MLX has no graphs of a device to be captured."""
        raise Unsupported("MLX compiles functions and captures no steps")

    def operations(self) -> AbstractContextManager[None]:
        """mlx computes when it is asked for results, and whole layers at once."""
        raise Unsupported("the mlx backend cannot tell the operations of a step apart")

    def reduce(self, logits: mx.array, base: mx.array | None, targets: Ids, rows: Ids) -> TokenScores:
        """On the device in float32; sums in float64, on the host."""
        with mx.stream(self.device):
            return _reduce(logits, base, targets, rows)

    def close(self) -> None:
        """Give the model's modules their own attention back."""
        self.close_once()

    def __enter__(self) -> MlxSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _reduce(logits: mx.array, base: mx.array | None, targets: Ids, rows: Ids) -> TokenScores:
    """nll, the target's place, and against the base: its nll, KL(base ‖ scheme), the rank of its first choice. Sums in float64, on the
    host.

    log b − log p is a difference of logits minus one of normalizers: it rounds at its own size and is exactly 0 for equal logits.
    """
    index, target = mx.array(rows), mx.array(targets[rows])[:, None]
    x = logits[index].astype(mx.float32)
    _, _, norm = _exponentials(x)
    nll = norm - _column(x, target)
    place = np.array((x > mx.take_along_axis(x, target, axis=1)).sum(1), dtype=np.int64)
    if base is None:
        return TokenScores(nll, np.empty(0), np.empty(0), np.empty(0, np.int64), place)
    b = base[index].astype(mx.float32)
    weights, total, base_norm = _exponentials(b)
    kld = _sums(weights * (b - x)) / total - (base_norm - norm)
    rank = (x > mx.take_along_axis(x, mx.argmax(b, axis=1, keepdims=True), axis=1)).sum(1)
    return TokenScores(nll, base_norm - _column(b, target), kld, np.array(rank, dtype=np.int64), place)


def _exponentials(x: mx.array) -> tuple[mx.array, Floats, Floats]:
    """exp(x − max x), its sum, and log Σ exp(x), per row."""
    top = x.max(axis=1, keepdims=True)
    weights = mx.exp(x - top)
    total = _sums(weights)
    return weights, total, np.log(total) + np.array(top[:, 0], dtype=np.float64)


def _sums(x: mx.array) -> Floats:
    return np.asarray(x).sum(1, dtype=np.float64)


def _column(x: mx.array, index: mx.array) -> Floats:
    return np.array(mx.take_along_axis(x, index, axis=1)[:, 0], dtype=np.float64)


def _info(model: Any, config: Any, facts: dict[str, Any]) -> ModelInfo:
    """The model's configuration in transformers' words, so that both backends say the same of the same weights."""
    return ModelInfo(
        architecture=config.model_type,
        layers=config.num_hidden_layers,
        kv_layers=_kv_layers(model),
        heads=config.num_attention_heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        vocab=config.vocab_size,
        max_positions=config.max_position_embeddings,
        dtype=_dtype(model),
        **facts,
    )


def _kv_layers(model: Any) -> int:
    """How many layers a scheme would replace; 0 for a model that schemes refuse."""
    try:
        return len(kv_layers(make_prompt_cache(model)))
    except Unsupported:
        return 0


def _dtype(model: Any) -> str:
    """What the model computes in; quantized weights are integers beside it."""
    found = {str(p.dtype).rpartition(".")[2] for _, p in tree_flatten(model.parameters()) if mx.issubdtype(p.dtype, mx.floating)}
    return " and ".join(sorted(found))


def _key_bias(model: Any, index: int, info: ModelInfo) -> Any:
    """The bias of a layer's key projection; None where keys are not projected by a `k_proj` of their own."""
    projection = getattr(getattr(model.layers[index], "self_attn", None), "k_proj", None)
    if projection is None:
        return None
    bias = projection.get("bias")
    shape = (info.kv_heads, info.head_dim)
    return np.zeros(shape, np.float32) if bias is None else np.array(bias.astype(mx.float32)).reshape(shape)


def _bos(tokenizer: Any) -> int | None:
    """The token that this tokenizer itself puts first, if it does."""
    if tokenizer is None:
        return None
    ids = tokenizer("a")["input_ids"]
    bos: int | None = tokenizer.bos_token_id
    return bos if bos is not None and ids and ids[0] == bos else None
