"""An mlx-lm model with a session open on it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
from transformers import AutoConfig, AutoTokenizer

from backends import weights
from backends.mlx import attention
from backends.mlx.cache import BaselineCache, StoreCache, kv_layers
from backends.mlx.loading import load_weights
from tqbench.core.errors import Unsupported
from tqbench.core.scheme import Scheme
from tqbench.core.session import Floats, Ids, LocalModel, ModelInfo, TokenScores

ROWS = 64  # logits are reduced this many rows at a time
DEVICES = {"cpu": mx.cpu, "gpu": mx.gpu}
DTYPES = ("float32", "bfloat16", "float16")


def load(model: LocalModel, device: str, dtype: str) -> MlxSession:
    """Load weights and tokenizer. Nothing is downloaded here."""
    if device not in DEVICES or not mx.is_available(DEVICES[device]):
        raise Unsupported(f"mlx has no device {device!r} here (it has: {', '.join(name for name in DEVICES if mx.is_available(DEVICES[name]))})")
    if dtype not in DTYPES:
        raise Unsupported(f"mlx computes norms, rotary positions and softmax in float32 at most, so {dtype} is not offered ({', '.join(DTYPES)})")
    folder = weights.directory(model)
    options = {"trust_remote_code": model.trust_remote_code, "local_files_only": True}
    config = AutoConfig.from_pretrained(folder, **options)
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    with mx.stream(DEVICES[device]):
        loaded = load_weights(folder, dtype, trust_remote_code=model.trust_remote_code)
    described = f"{weights.describe(model)}, computed in {dtype}"
    return MlxSession(loaded, tokenizer, _info(model.name, loaded, config, tokenizer, (device, dtype, described)))


class MlxSession:
    """Runs tokens through the model with its own cache or with a scheme's stores."""

    def __init__(self, model: Any, tokenizer: Any, info: ModelInfo):
        self.model, self.tokenizer, self.info = model, tokenizer, info
        self.device = DEVICES[info.device]
        self.lookups = attention.lookups(model)
        attention.replace(self.lookups)
        self.close_once = weakref.finalize(self, attention.restore, self.lookups)  # also when a session is dropped without close

    def tokenize(self, text: str) -> Ids:
        """Token ids without special tokens."""
        return np.asarray(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64)

    def new_cache(self, scheme: Scheme | None, kernel: str = "auto") -> BaselineCache | StoreCache:
        """An empty cache; None is the model's own."""
        own = make_prompt_cache(self.model)
        if scheme is None:
            return BaselineCache(own)
        if not self.lookups:
            raise Unsupported(f"architecture {self.info.architecture!r} does not call mlx-lm's {attention.NAME}, where schemes come in")
        return StoreCache(own, self.info, scheme, kernel)

    def forward(self, tokens: Ids, cache: BaselineCache | StoreCache) -> mx.array:
        """Logits [tokens, vocab]."""
        before = cache.stores[0].tokens if isinstance(cache, StoreCache) else 0
        with mx.stream(self.device):
            logits = self.model(mx.array(tokens)[None], cache=cache)[0]
            mx.eval(logits, [layer.state for layer in cache])
        if isinstance(cache, StoreCache):
            cache.check(before + len(tokens))
        return logits

    def score(
        self,
        tokens: Ids,
        cache: Any,
        targets: Ids,
        against: Any = None,
        chunk: int = 512,
        progress: Callable[[int], None] | None = None,
    ) -> TokenScores:
        """Run in chunks; reduce logits to numbers row block by row block."""
        parts = []
        for first in range(0, len(tokens), chunk):
            piece = slice(first, first + chunk)
            logits = self.forward(tokens[piece], cache)
            base = None if against is None else self.forward(tokens[piece], against)
            rows = np.flatnonzero(targets[piece] >= 0)
            with mx.stream(self.device):
                parts += [_reduce(logits, base, targets[piece], rows[i : i + ROWS]) for i in range(0, len(rows), ROWS)]
            if progress:
                progress(len(tokens[piece]))
        return TokenScores.join(parts)

    def close(self) -> None:
        """Give the model's modules their own attention back."""
        self.close_once()

    def __enter__(self) -> MlxSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _reduce(logits: mx.array, base: mx.array | None, targets: Ids, rows: Ids) -> TokenScores:
    """nll, and against the base: its nll, KL(base ‖ scheme), the rank of its first choice. Sums in float64 (on the host: MLX GPUs have none).

    log b − log p is taken as a difference of logits minus a difference of normalizers, so that equal logits give exactly 0.
    """
    index, target = mx.array(rows), mx.array(targets[rows])[:, None]
    x = logits[index].astype(mx.float32)
    norm = _logsumexp(x)
    nll = norm - _column(x, target)
    if base is None:
        return TokenScores(nll, *(np.empty(0) for _ in range(2)), np.empty(0, np.int64))
    b = base[index].astype(mx.float32)
    base_norm = _logsumexp(b)
    gap = _sums(mx.softmax(b, axis=1) * (b - x))
    rank = (x > mx.take_along_axis(x, mx.argmax(b, axis=1, keepdims=True), axis=1)).sum(1)
    return TokenScores(nll, base_norm - _column(b, target), gap - (base_norm - norm), np.array(rank, dtype=np.int64))


def _logsumexp(x: mx.array) -> Floats:
    top = x.max(axis=1, keepdims=True)
    return np.log(_sums(mx.exp(x - top))) + np.array(top[:, 0], dtype=np.float64)


def _sums(x: mx.array) -> Floats:
    return np.asarray(x).sum(1, dtype=np.float64)


def _column(x: mx.array, index: mx.array) -> Floats:
    return np.array(mx.take_along_axis(x, index, axis=1)[:, 0], dtype=np.float64)


def _info(name: str, model: Any, config: Any, tokenizer: Any, computed: tuple[str, str, str]) -> ModelInfo:
    text = config.get_text_config(decoder=True)
    device, dtype, described = computed
    return ModelInfo(
        name=name,
        architecture=text.model_type,
        layers=text.num_hidden_layers,
        kv_layers=_kv_layers(model),
        heads=text.num_attention_heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
        vocab=text.vocab_size,
        max_positions=text.max_position_embeddings,
        dtype=dtype,
        device=device,
        weights=described,
        bos_token=_bos(tokenizer),
    )


def _kv_layers(model: Any) -> int:
    """How many layers a scheme would replace; 0 for a model that schemes refuse."""
    try:
        return len(kv_layers(make_prompt_cache(model)))
    except Unsupported:
        return 0


def _bos(tokenizer: Any) -> int | None:
    """The token that this tokenizer itself puts first, if it does."""
    ids = tokenizer("a")["input_ids"]
    bos: int | None = tokenizer.bos_token_id
    return bos if bos is not None and ids and ids[0] == bos else None
