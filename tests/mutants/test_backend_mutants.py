"""A toy engine with an honest session on it, and for every backend check a session that is broken in exactly that way."""

import copy
import hashlib
from dataclasses import replace
from itertools import count
from typing import ClassVar

import numpy as np
import pytest
import torch

from tqbench.cache import build
from tqbench.cache.agreement import between
from tqbench.cache.arrays import TorchArrays
from tqbench.cache.state import by_key, exact, exactly
from tqbench.cache.store import Store
from tqbench.core.errors import StorageError, Unsupported
from tqbench.core.evidence import kept
from tqbench.core.presets import preset
from tqbench.core.session import Exact, ModelInfo, Terms, TokenScores
from tqbench.core.state import SIDES, State
from tqbench.testing import Backend
from tqbench.testing import backend_checks as checks
from tqbench.testing.samples import gaussian

VOCAB, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 64, 4, 2, 64, 2
INFO = ModelInfo("toy", "toy", LAYERS, LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCAB, 256, "float64", "cpu", "random", None)


class Layer:
    """The engine's cache of one layer."""

    def __init__(self):
        self.k, self.v = (torch.empty(1, KV_HEADS, 0, HEAD_DIM, dtype=torch.float64) for _ in range(2))

    def update(self, k, v):
        self.k, self.v = torch.cat([self.k, k], 2), torch.cat([self.v, v], 2)
        return self.k, self.v


class EngineCache(list):
    """The engine's cache."""

    def evidence(self):
        return []

    def kv_bytes(self):
        return sum(layer.k.nbytes + layer.v.nbytes for layer in self)

    def state(self):
        pairs = [(f"{i}.{side}", getattr(layer, side)) for i, layer in enumerate(self) for side in SIDES]
        return State(tuple(exact(key, x, 0, TorchArrays(), INFO.dtype) for key, x in pairs))

    def take_back(self, state):
        found = by_key(state, [f"{i}.{side}" for i in range(len(self)) for side in SIDES])
        for i, layer in enumerate(self):
            layer.k, layer.v = (exactly(found[f"{i}.{side}"], KV_HEADS, HEAD_DIM, TorchArrays(), INFO.dtype)[0] for side in SIDES)
        return self

    def agreement(self, context):
        pairs = [
            (i, side, getattr(there, side), getattr(here, side))
            for i, (here, there) in enumerate(zip(self, context, strict=True))
            for side in SIDES
        ]
        return [between(*pair, TorchArrays()) for pair in pairs]


class StoreCache(list):
    """A store per layer."""

    def evidence(self):
        return [side for store in self for side in store.evidence()]

    def verify(self):
        for store in self:
            store.verify()

    def kv_bytes(self):
        return kept(self.evidence())

    def state(self):
        return State(tuple(entry for store in self for entry in store.hand_out()))

    def take_back(self, state):
        found = by_key(state, [f"{i}.{side}" for i in range(len(self)) for side in SIDES])
        for store in self:
            store.take_back(found)
        return self

    def agreement(self, context):
        return [one for store, layer in zip(self, context, strict=True) for one in store.agreement(layer.k, layer.v)]


def attend(q, k, v, layer):
    """The engine's attention."""
    return causal(q, *layer.update(k, v))


def causal(q, k, v):
    """Causal attention of the last queries."""
    k, v = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (k, v))
    ahead = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(k.shape[2] - q.shape[2] + 1)
    return torch.softmax((q @ k.mT / 8).masked_fill(ahead, -torch.inf), -1) @ v


class Model:
    """Two layers of attention between an embedding and its transpose."""

    def __init__(self):
        width = HEADS * HEAD_DIM
        self.embedding = gaussian(VOCAB, width, seed=9, dtype=torch.float64)
        self.q, self.k, self.v = (gaussian(width, n * HEAD_DIM, seed=n, dtype=torch.float64) / 16 for n in (HEADS, KV_HEADS, KV_HEADS))
        self.attend = attend

    def __call__(self, tokens, cache):
        x = self.embedding[torch.from_numpy(tokens)]
        for layer in cache:
            q, k, v = ((x @ w).unflatten(-1, (-1, HEAD_DIM)).transpose(0, 1)[None] for w in (self.q, self.k, self.v))
            x = x + self.attend(q, k, v, layer)[0].transpose(0, 1).flatten(1)
        return x @ self.embedding.T / 64


class Toy:
    """An honest session."""

    info = INFO

    def __init__(self, model):
        self.model = model
        model.attend = self.route

    def new_cache(self, scheme, terms=Terms(), context=None):
        if scheme is None:
            own = EngineCache(Layer() for _ in range(LAYERS))
            return own.take_back(context) if isinstance(context, State) else own if context is None else copy.deepcopy(context)
        shape = build.Shape("toy", HEAD_DIM, INFO.dtype, KV_HEADS, HEADS)
        cache = StoreCache(Store(scheme.for_layer(i, LAYERS), shape, TorchArrays(), terms, build.Layer(i, i)) for i in range(LAYERS))
        if isinstance(context, State):
            return cache.take_back(context)
        for store, layer in zip(cache, context or (), strict=False):
            store.take(layer.k, layer.v)
        return cache

    def weights_sha256(self):
        return hashlib.sha256(self.model.embedding.numpy().tobytes()).hexdigest()

    def context(self, tokens):
        cache = EngineCache(Layer() for _ in range(LAYERS))
        self.forward(tokens, cache)
        return cache

    def exact(self, context):
        return [Exact(i, *(x[0].float().numpy() for x in (layer.k, layer.v)), None) for i, layer in enumerate(context)]

    def route(self, q, k, v, layer):
        if isinstance(layer, Layer):
            return attend(q, k, v, layer)
        layer.append(k, v)
        return causal(q, *layer.visible()) if layer.through_engine else self.through_store(q, k, v, layer)

    def through_store(self, q, k, v, store):
        return store.attend(q, 1 / 8)

    def forward(self, tokens, cache, *, last=False):
        return self.model(tokens, cache)[-1 if last else 0 :]

    def choose(self, logits):
        return int(logits[-1].argmax())

    def score(self, tokens, cache, targets, against=None, chunk=512, progress=None):
        parts = []
        for first in range(0, len(tokens), chunk):
            piece = slice(first, first + chunk)
            rows = targets[piece] >= 0
            log_p = torch.log_softmax(self.forward(tokens[piece], cache), -1).numpy()[rows]
            log_b = None if against is None else torch.log_softmax(self.forward(tokens[piece], against), -1).numpy()[rows]
            parts.append(self.reduce(log_p, log_b, targets[piece][rows]))
            if progress:
                progress(len(tokens[piece]))
        return TokenScores.join(parts)

    def reduce(self, log_p, log_b, target):
        rows = np.arange(len(target))
        place = (log_p > log_p[rows, target][:, None]).sum(1)
        if log_b is None:
            return TokenScores(-log_p[rows, target], np.empty(0), np.empty(0), np.empty(0, np.int64), place)
        kld, first = (np.exp(log_b) * (log_b - log_p)).sum(1), log_p[rows, log_b.argmax(1)]
        return TokenScores(-log_p[rows, target], -log_b[rows, target], kld, (log_p > first[:, None]).sum(1), place)

    def close(self):
        self.model.attend = attend


class MiscountsLayers(Toy):
    info = replace(INFO, kv_layers=1)


class QuantizesBaseline(Toy):
    def new_cache(self, scheme, terms=Terms()):
        return super().new_cache(scheme or preset("turbo4"), terms)


class LeavesTraces(Toy):
    """A scheme that has run once shows in the baseline."""

    used = 0

    def new_cache(self, scheme, terms=Terms()):
        self.used += scheme is not None
        return super().new_cache(scheme, terms)

    def forward(self, tokens, cache):
        return super().forward(tokens, cache) + self.used * 1e-9


class CountsInBits(Toy):
    def reduce(self, log_p, log_b, target):
        scores = super().reduce(log_p, log_b, target)
        return replace(scores, nll=scores.nll / np.log(2))


class SwapsDivergence(Toy):
    def reduce(self, log_p, log_b, target):
        if log_b is None:
            return super().reduce(log_p, log_b, target)
        return replace(super().reduce(log_p, log_b, target), kld=(np.exp(log_p) * (log_p - log_b)).sum(1))


class PlacesItself(Toy):
    """Counts the target among those before it."""

    def reduce(self, log_p, log_b, target):
        scores = super().reduce(log_p, log_b, target)
        return replace(scores, place=scores.place + 1)


class SkipsIdentity(Toy):
    """Answers even the identity control from its own attention."""

    def route(self, q, k, v, layer):
        if isinstance(layer, Layer):
            return attend(q, k, v, layer)
        layer.append(k, v)
        return self.through_store(q, k, v, layer)


class WrongScale(Toy):
    def through_store(self, q, k, v, store):
        return store.attend(q, 1 / 7.9)


class IgnoresScheme(Toy):
    """Measures the engine's own cache whatever was asked for."""

    def new_cache(self, scheme, terms=Terms()):
        return super().new_cache(None)


class OneFormForAll(Toy):
    """Runs the same scheme under every name."""

    def new_cache(self, scheme, terms=Terms()):
        return super().new_cache(scheme and preset("turbo4"), terms)


class AttendsRaw(Toy):
    """Attends to the raw K and V of the running forward: the measurement that reports no loss in one pass."""

    def through_store(self, q, k, v, store):
        new = k.shape[2]
        return causal(q, *(torch.cat([seen[:, :, :-new], raw], 2) for seen, raw in zip(store.visible(), (k, v), strict=True)))


class HidesLayers(Toy):
    """Shows the evidence of its first layer only."""

    def new_cache(self, scheme, terms=Terms()):
        cache = super().new_cache(scheme, terms)
        evidence = cache.evidence
        cache.evidence = lambda: [side for side in evidence() if side.layer == 0]
        return cache


class ClaimsEvidence(Toy):
    """Hands out a store's evidence for the engine's own cache."""

    def new_cache(self, scheme, terms=Terms()):
        cache = super().new_cache(scheme, terms)
        if scheme is None:
            cache.evidence = lambda: ["something"]
        return cache


class LosesContext(Toy):
    def new_cache(self, scheme, terms=Terms(), context=None):
        return super().new_cache(scheme, terms)


class SpendsContext(Toy):
    """Decodes into the context itself."""

    def new_cache(self, scheme, terms=Terms(), context=None):
        return context if scheme is None and context is not None else super().new_cache(scheme, terms, context)


class AttendsContext(Toy):
    """Counts a context as if somebody had attended to it."""

    def new_cache(self, scheme, terms=Terms(), context=None):
        cache = super().new_cache(scheme, terms)
        for store, layer in zip(cache, context or (), strict=False):
            if isinstance(store, Store):
                store.append(layer.k, layer.v)
                store.visible()
            else:
                store.update(layer.k, layer.v)
        return cache


class TakesBackOneLayer(Toy):
    """What goes on after it has been saved is half of it."""

    def new_cache(self, scheme, terms=Terms(), context=None):
        cache = super().new_cache(scheme, terms, context)
        if isinstance(context, State):
            cache[1] = copy.deepcopy(cache[0])
        return cache


class ForgetsLayers(Toy):
    def exact(self, context):
        return super().exact(context)[:1]


class RoundsValues(Toy):
    """Gives what another dtype would keep of them."""

    def exact(self, context):
        return [replace(layer, v=layer.v.astype(np.float16).astype(np.float32)) for layer in super().exact(context)]


class CentresKeys(Toy):
    """Takes the mean over the text off."""

    def exact(self, context):
        return [replace(layer, k=layer.k - layer.k.mean(1, keepdims=True)) for layer in super().exact(context)]


class TakesAnything(Toy):
    """Gives an empty cache instead of refusing."""

    def new_cache(self, scheme, terms=Terms(), context=None):
        try:
            return super().new_cache(scheme, terms, context)
        except StorageError:
            return super().new_cache(scheme, terms)


class NeverVerifies(Toy):
    def new_cache(self, scheme, terms=Terms(), context=None):
        cache = super().new_cache(scheme, terms, context)
        cache.verify = lambda: None
        return cache


class ChoosesSecondBest(Toy):
    def choose(self, logits):
        return int(logits[-1].topk(2).indices[1])


class FallsBack(Toy):
    def new_cache(self, scheme, terms=Terms()):
        try:
            return super().new_cache(scheme, terms)
        except Unsupported:
            return super().new_cache(scheme)


class Speechless(Toy):
    def new_cache(self, scheme, terms=Terms()):
        if terms.kernel != "auto":
            raise Unsupported("not that one")
        return super().new_cache(scheme, terms)


class SharesState(Toy):
    """Counts all open sessions, and computes with the count."""

    OPEN: ClassVar = []

    def __init__(self, model):
        super().__init__(model)
        self.OPEN.append(self)

    def forward(self, tokens, cache):
        return super().forward(tokens, cache) * len(self.OPEN)

    def close(self):
        super().close()
        self.OPEN.remove(self)


class Counting(Toy):
    """No session is like the one before."""

    OPENED = count()

    def __init__(self, model):
        super().__init__(model)
        self.number = next(self.OPENED)

    def forward(self, tokens, cache):
        return super().forward(tokens, cache) + self.number * 1e-9


class StaysOpen(Toy):
    def close(self):
        pass


class SwallowsInterrupts(Toy):
    def score(self, *args, progress=None, **kwargs):
        return super().score(*args, **kwargs)


class LeavesWeights(Toy):
    """Scales the weights while it is open."""

    def __init__(self, model):
        super().__init__(model)
        model.embedding *= 1.0001


def backend(session):
    return Backend(
        session.__name__,
        make=Model,
        open_session=session,
        logits=lambda model, tokens: model(tokens, [Layer(), Layer()]),
        state=lambda model: model.attend,
    )


MUTANTS = [
    (checks.check_info, MiscountsLayers, "info says 1"),
    (checks.check_baseline, QuantizesBaseline, "differs from the engine alone"),
    (checks.check_baseline, LeavesTraces, "changes once a scheme has run"),
    (checks.check_scores, CountsInBits, "nll is not what its formula gives"),
    (checks.check_scores, SwapsDivergence, "kld is not what its formula gives"),
    (checks.check_scores, PlacesItself, "place is not what its formula gives"),
    (checks.check_identity, SkipsIdentity, "changes the nll|has a divergence"),
    (checks.check_rounding, WrongScale, "without a quantizer"),
    (checks.check_effect, IgnoresScheme, "has no effect"),
    (checks.check_effect, OneFormForAll, "little harm"),
    (checks.check_chunks, AttendsRaw, "in chunks of"),
    (checks.check_evidence, HidesLayers, "1 layers went through the store"),
    (checks.check_evidence, ClaimsEvidence, "claims evidence"),
    (checks.check_context, LosesContext, "does not go on from a context"),
    (checks.check_context, SpendsContext, "does not go on from a context"),
    (checks.check_context, AttendsContext, "counts as attended"),
    (checks.check_context, NeverVerifies, "after verify"),
    (checks.check_context, ChoosesSecondBest, "is chosen"),
    (checks.check_saved, TakesBackOneLayer, "agrees with the context by"),
    (checks.check_saved, TakesAnything, "is taken for that of turbo3"),
    (checks.check_exact, ForgetsLayers, "arrays of 1 layers"),
    (checks.check_exact, RoundsValues, "is not what the engine's own cache holds"),
    (checks.check_exact, CentresKeys, "with what follows them"),
    (checks.check_unknown_kernel, FallsBack, "is accepted"),
    (checks.check_unknown_kernel, Speechless, "without being named"),
    (checks.check_sessions_apart, SharesState, "a second open session"),
    (checks.check_sessions_apart, Counting, "a second open session"),
    (checks.check_close, StaysOpen, "close leaves"),
    (checks.check_close, SwallowsInterrupts, "swallows an interrupt"),
    (checks.check_close, LeavesWeights, "computes something else"),
]


@pytest.mark.parametrize(("check", "mutant", "message"), MUTANTS, ids=[mutant.__name__ for _, mutant, _ in MUTANTS])
def test_mutant_is_rejected(check, mutant, message):
    with pytest.raises(AssertionError, match=message):
        check(backend(mutant))


@pytest.mark.parametrize("check", list(checks.checks_for(backend(Toy))), ids=lambda check: check.__name__)
def test_honest_session_passes(check):
    check(backend(Toy))


def test_every_check_has_a_mutant_and_is_offered(all_checks):
    assert {check for check, _, _ in MUTANTS} == all_checks(checks) == set(checks.checks_for(backend(Toy)))
