"""A Hugging Face model with a session open on it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

from backends import weights, words
from backends.scoring import Scoring
from backends.transformers import random
from backends.transformers.attention import register
from backends.transformers.cache import BaselineCache, StoreCache, count_kv_layers, kv_layers
from backends.transformers.in_place import InPlaceCache
from backends.transformers.operations import marked
from backends.transformers.peers import PeerCache
from backends.transformers.stretch import Stretch, ready
from tqbench.cache.build import Shape
from tqbench.cache.calibration import Calibration, Piece
from tqbench.cache.rope import Rope
from tqbench.codecs.blocks.wrap import LLAMACPP_ORDER
from tqbench.core.errors import Unsupported
from tqbench.core.files import cache_root
from tqbench.core.scheme import Scheme
from tqbench.core.session import Exact, Ids, LocalModel, ModelInfo, Terms, TokenScores
from tqbench.core.state import State
from tqbench.measure import device as devices
from tqbench.measure.graphs import Recorder
from tqbench.measure.stages import stage

PREFILL = 512  # tokens of a context that are run at once


def load(model: LocalModel, device: str, dtype: str) -> TransformersSession:
    """Load weights and tokenizer. Nothing is downloaded here."""
    devices.check(device)
    if model.config is not None:
        made, drawn = random.model(model.config, device, dtype)
        return TransformersSession(made, random.Bytes(), model.name, f"{drawn}, computed in {dtype}")
    folder = weights.directory(model)
    config, tokenizer = weights.settled(model, folder)
    options = {"trust_remote_code": model.trust_remote_code, "local_files_only": True, "use_safetensors": True}
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not (model.trust_remote_code and hasattr(config, "auto_map")):
        raise Unsupported(f"architecture {config.model_type!r} of model {model.name!r} is no causal language model in transformers")
    loaded, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype=getattr(torch, dtype), **options)
    if missing := sorted(report["missing_keys"]):  # the engine would go on with random ones
        raise Unsupported(f"the weights of model {model.name!r} lack {len(missing)} arrays that it needs, {missing[0]!r} first")
    session = TransformersSession(loaded.to(device), tokenizer, model.name, weights.describe(model, dtype))
    own = weights.remote_code(folder) if type(loaded).__module__.startswith("transformers_modules") else None
    session.info = replace(session.info, revision=model.revision, weights_sha256=model.sha256, remote_code=own)
    return session


class TransformersSession(Scoring):
    """Runs tokens through the model with its own cache or with a scheme's stores."""

    def __init__(self, model: Any, tokenizer: Any, name: str, described: str = ""):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.info = _info(model, tokenizer, name, described)
        facts = self.info
        self.shape = Shape(facts.architecture, facts.head_dim, facts.dtype, facts.kv_heads, facts.heads, _rope(model, facts))
        self.open = True
        _fit(model)

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

    @torch.inference_mode()
    def weights_sha256(self) -> str:
        """Of parameters and buffers; the frequencies of the rotary embedding are among these."""
        named = [*self.model.named_parameters(), *self.model.named_buffers()]
        return weights.fingerprint(
            (
                f"{name} {tuple(x.shape)} {x.dtype}",
                x.flatten()[:: weights.spread(x.numel())].contiguous().view(torch.uint8).cpu().numpy().tobytes(),
            )
            for name, x in named
        )

    @torch.inference_mode()
    def new_cache(
        self, scheme: Scheme | None, terms: Terms = Terms(), context: BaselineCache | State | None = None
    ) -> BaselineCache | StoreCache | PeerCache:
        """A cache that is empty or holds a context; None is the model's own."""
        if scheme is None:
            if isinstance(context, BaselineCache):
                return copy.deepcopy(context)
            own = BaselineCache(config=self.model.config)
            if context is not None:
                own.take_back(context, self.shape, self.info.device)
            return own
        kind = PeerCache if scheme.peer else StoreCache
        cache = kind(self.model.config, self.shape, self.info.device, scheme, terms)
        if isinstance(context, State):
            cache.take_back(context)
        elif context is not None:
            cache.take(context)
        return cache

    def context(self, tokens: Ids) -> BaselineCache:
        """What the model's own cache holds after these tokens."""
        cache = BaselineCache(config=self.model.config)
        for first in range(0, len(tokens), PREFILL):
            self.forward(tokens[first : first + PREFILL], cache, last=True)
        return cache

    @torch.inference_mode()
    def exact(self, context: BaselineCache) -> list[Exact]:
        """A context as arrays."""
        found = []
        for index in kv_layers(self.model.config):
            k, v = (x[0].float().cpu().numpy() for x in context.piece(index)[:2])
            found.append(Exact(index, k, v, _key_bias(self.model, index, self.info)))
        return found

    def calibrate(self, windows: Sequence[Ids]) -> Calibration:
        """The keys and values that each layer has at the end of each window."""
        held = kv_layers(self.model.config)
        layers: list[list[Piece]] = [[] for _ in held]
        for window in windows:
            cache = BaselineCache(config=self.model.config)
            self.forward(window, cache)
            for own, index in zip(layers, held, strict=True):
                own.append(Piece(*cache.piece(index)))
        return Calibration(layers, cache_root() / "calibration")

    @torch.inference_mode()
    def forward(self, tokens: Ids, cache: BaselineCache | StoreCache | PeerCache, *, last: bool = False) -> Tensor:
        """Logits [tokens, vocab]."""
        most = cache.shared.most if isinstance(cache, StoreCache) else None
        if most is None or len(tokens) <= most:
            return self._forward(tokens, cache, last=last)
        logits = [self._forward(tokens[first : first + most], cache, last=last) for first in range(0, len(tokens), most)]
        return logits[-1] if last else torch.cat(logits)

    def _forward(self, tokens: Ids, cache: BaselineCache | StoreCache | PeerCache, *, last: bool) -> Tensor:
        ids = _to(self.info.device, tokens)[None]
        before = 0 if isinstance(cache, BaselineCache) else cache.stores[0].tokens
        some = {"logits_to_keep": 1} if last else {}
        with stage("model"):
            logits: Tensor = self.model(input_ids=ids, past_key_values=cache, use_cache=True, **some).logits[0]
        if not isinstance(cache, BaselineCache):
            cache.check(before + len(tokens))
        return logits

    def choose(self, logits: Tensor) -> int:
        """The most likely token after the last one."""
        with stage("choose"):
            return int(_likeliest(logits))

    @torch.inference_mode()
    def stretch(self, tokens: Ids, cache: BaselineCache | StoreCache | PeerCache, together: int, recorder: Recorder) -> Stretch:
        """The baseline's K and V move to buffers with room for all tokens; a scheme's cache goes on where it is."""
        count = len(tokens)
        placed = InPlaceCache(self.model.config, cache, count) if isinstance(cache, BaselineCache) else ready(cache, count)

        def step(token: int, through: Any = placed) -> tuple[Tensor, Tensor]:
            logits = self.forward(np.array([token]), through, last=True)
            return _likeliest(logits), logits

        own = partial(step, through=cache) if isinstance(cache, BaselineCache) else None
        return Stretch(step, placed, tokens, together, recorder, own)

    def operations(self) -> AbstractContextManager[None]:
        """The model's modules as stages."""
        return marked(self.model)

    @torch.inference_mode()
    def reduce(self, logits: Tensor, base: Tensor | None, targets: Ids, rows: Ids) -> TokenScores:
        """On the device, in float32 with sums in float64."""
        return _reduce(logits, base, targets, rows)

    def close(self) -> None:
        """Give the model its own attention back."""
        if self.open:
            self.open = False
            _unfit(self.model)

    def __enter__(self) -> TransformersSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _likeliest(logits: Tensor) -> Tensor:
    return logits[-1].argmax()


def _to(device: str, tokens: Ids) -> Tensor:
    """Token ids on the device. One as an argument, which needs no copy and is the same in a captured step; more to CUDA from pinned memory,
    for which the host does not wait."""
    if len(tokens) == 1:
        return torch.full((1,), int(tokens[0]), device=device)
    ids = torch.from_numpy(np.ascontiguousarray(tokens))
    return ids.pin_memory().to(device, non_blocking=True) if device.startswith("cuda") else ids.to(device)


def _reduce(logits: Tensor, base: Tensor | None, targets: Ids, rows: Ids) -> TokenScores:
    """nll, the target's place, and against the base: its nll, KL(base ‖ scheme), the rank of its first choice. Sums in float64."""
    index = torch.from_numpy(rows).to(logits.device)
    target = torch.from_numpy(targets[rows]).to(logits.device)[:, None]
    x = logits[index]
    lse, _, _ = _log_sum_exp(x)
    wanted = x.gather(1, target)
    nll, place = lse - wanted[:, 0].double(), (x > wanted).sum(1).cpu().numpy()
    if base is None:
        return TokenScores(_numpy(nll), np.empty(0), np.empty(0), np.empty(0, np.int64), place)
    b = base[index]
    base_lse, weights, total = _log_sum_exp(b)
    # KL = Σ p_b (b − x) − (lse_b − lse_x); equal logits give exactly 0.
    kld = (weights * (b - x)).sum(1, dtype=torch.float64) / total - (base_lse - lse)
    rank = (x > x.gather(1, b.argmax(1, keepdim=True))).sum(1)
    return TokenScores(_numpy(nll), _numpy(base_lse - b.gather(1, target)[:, 0].double()), _numpy(kld), rank.cpu().numpy(), place)


def _log_sum_exp(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(log Σ exp x, exp(x − max), its sum): exponentials in float32 at least, sums in float64."""
    x = x if x.dtype == torch.float64 else x.float()
    top = x.amax(1, keepdim=True)
    weights = (x - top).exp()
    total = weights.sum(1, dtype=torch.float64)
    return top[:, 0].double() + total.log(), weights, total


def _numpy(x: Tensor) -> Any:
    return x.double().cpu().numpy()


def _info(model: Any, tokenizer: Any, name: str, described: str) -> ModelInfo:
    config = model.config.get_text_config(decoder=True)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelInfo(
        name=name,
        architecture=config.model_type,
        layers=config.num_hidden_layers,
        kv_layers=count_kv_layers(model.config),
        heads=config.num_attention_heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_dim=head_dim,
        vocab=config.vocab_size,
        max_positions=config.max_position_embeddings,
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
        weights=described,
        bos_token=words.bos(tokenizer),
        start_token=getattr(tokenizer, "bos_token_id", None),
        stop_tokens=words.stops(tokenizer, model.generation_config),
    )


def _rope(model: Any, info: ModelInfo) -> Rope | str:
    """The rotary embedding, where all layers have the same, half-split and for any length; else why it is not known."""
    found = [m for m in model.modules() if hasattr(m, "inv_freq") and hasattr(m, "attention_scaling")]
    if info.architecture not in LLAMACPP_ORDER:
        return f"whether it pairs channels half-split or interleaved (known: {', '.join(sorted(LLAMACPP_ORDER))})"
    if len(found) != 1 or not isinstance(getattr(found[0], "rope_type", None), str):
        return f"{len(found)} modules hold frequencies, and which layer uses which is not known"
    if found[0].rope_type not in ("default", "linear", "llama3", "yarn"):
        return f"with rope_type {found[0].rope_type!r} they depend on the length of the text"
    return Rope(tuple(found[0].inv_freq.float().tolist()), float(found[0].attention_scaling))


def _key_bias(model: Any, index: int, info: ModelInfo) -> Any:
    """The bias of a layer's key projection; None where keys are not projected by a `k_proj` of their own."""
    found = [m.k_proj for m in model.modules() if getattr(m, "layer_idx", None) == index and hasattr(m, "k_proj")]
    if len(found) != 1:
        return None
    bias = found[0].bias
    return torch.zeros(info.kv_heads, info.head_dim).numpy() if bias is None else bias.float().cpu().numpy().reshape(info.kv_heads, -1)


def _bos(tokenizer: Any) -> int | None:
    """The token that this tokenizer itself puts first, if it does."""
    if tokenizer is None:
        return None
    ids = tokenizer("a")["input_ids"]
    bos: int | None = tokenizer.bos_token_id
    return bos if bos is not None and ids and ids[0] == bos else None


@dataclass
class _Fitting:
    """What sessions changed on a model: how many are open, its own attention, and the norms that compute in float64 meanwhile."""

    engine: str
    norms: list[Any]
    sessions: int = 0


_FITTED: WeakKeyDictionary[Any, _Fitting] = WeakKeyDictionary()


def _fit(model: Any) -> None:
    """Let the model's attention find stores. Float64 is float64 all the way: transformers' RMSNorm computes in float32 whatever the
    model's dtype, which would blur the oracle."""
    if model not in _FITTED:
        engine = model.config._attn_implementation
        if engine == "sdpa" and getattr(model.config.get_text_config(decoder=True), "attn_logit_softcapping", None):
            model.set_attn_implementation("eager")  # as newer versions do: torch's SDPA knows no cap, and would leave it out
        name = register(model)
        norms = [m for m in model.modules() if type(m).__name__.endswith("RMSNorm") and (hasattr(m, "variance_epsilon") or _offset(m))]
        _FITTED[model] = _Fitting(engine, norms if model.dtype == torch.float64 else [])
        for norm in _FITTED[model].norms:
            norm.forward = MethodType(_rms_norm, norm)
        model.set_attn_implementation(name)
    _FITTED[model].sessions += 1


def _unfit(model: Any) -> None:
    """Give the model back as it was once its last session closes."""
    fitting = _FITTED[model]
    fitting.sessions -= 1
    if not fitting.sessions:
        del _FITTED[model]
        model.set_attn_implementation(fitting.engine)
        for norm in fitting.norms:
            del norm.forward


def _offset(norm: Any) -> bool:
    """Whether a norm multiplies by 1 + weight."""
    return type(norm).__name__ in ("GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm")


def _rms_norm(self: Any, hidden_states: Tensor) -> Tensor:
    weight, eps = (1 + self.weight, self.eps) if _offset(self) else (self.weight, self.variance_epsilon)
    return torch.nn.functional.rms_norm(hidden_states, weight.shape, weight, eps)
