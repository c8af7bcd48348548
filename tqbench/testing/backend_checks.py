"""What every backend owes the tasks, seen through the Session protocol: its zero is zero, its proof complete, its traces gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tqbench.core.evidence import audit, coverage
from tqbench.core.presets import preset, read
from tqbench.core.scheme import Scheme
from tqbench.core.session import Exact, Ids, Session, Terms, TokenScores
from tqbench.core.state import SIDES, State
from tqbench.testing.refusal import refusal


@dataclass(frozen=True)
class Backend:
    """A backend on a tiny random model in float32 or float64, with head_dim 64 and room for 90 tokens.

    `make` gives the model as the engine has it, the same weights every time, and `open_session` a session on such a model. `logits` runs
    tokens through a model that no session is open on. `state` tells what `close` must leave as it was; it is compared with ==.
    """

    name: str
    make: Callable[[], Any]
    open_session: Callable[[Any], Session]
    logits: Callable[[Any, Ids], Any]
    state: Callable[[Any], Any]


Check = Callable[[Backend], None]
TOKENS, CHUNK = 90, 40
ROUNDING = {"float32": 1e-3, "float64": 1e-5}  # nats; the float32 codec itself rounds a float64 model


def checks_for(backend: Backend) -> Iterator[Check]:  # noqa: ARG001 - every backend owes all of them
    """The checks of a backend."""
    yield from ALWAYS


def probes() -> list[Scheme]:
    """Lossy schemes that use all of the policy, in any architecture's own channel order."""
    k, v = {"codec": "affine", "bits": 4, "axis": "channel", "window": 5}, {"codec": "block", "bits": 8, "window": 9, "flush": 4}
    return [preset("turbo4"), read({"name": "probe", "k": k, "v": v, "sinks": 3, "protect": {"first": 1, "scheme": "turbo3"}})]


def opened(backend: Backend) -> closing[Session]:
    """A session on a model of its own, closed at the end."""
    return closing(backend.open_session(backend.make()))


def text(session: Session) -> Ids:
    """Random tokens."""
    return np.random.default_rng(0).integers(0, session.info.vocab, TOKENS)


def targets(tokens: Ids) -> Ids:
    """The next token of each, where there is one."""
    return np.append(tokens[1:], -1)


def scores(session: Session, scheme: Scheme, chunk: int = CHUNK) -> tuple[TokenScores, Any]:
    """The scheme beside the baseline, and its cache."""
    tokens, cache = text(session), session.new_cache(scheme)
    return session.score(tokens, cache, targets(tokens), against=session.new_cache(None), chunk=chunk), cache


def logits(session: Session, scheme: Scheme | None, chunk: int = CHUNK) -> NDArray[Any]:
    """Logits of the whole text."""
    return np.concatenate(list(_pieces(session, scheme, chunk)))


def _pieces(session: Session, scheme: Scheme | None, chunk: int) -> Iterator[NDArray[Any]]:
    tokens, cache = text(session), session.new_cache(scheme)
    for first in range(0, TOKENS, chunk):
        yield _array(session.forward(tokens[first : first + chunk], cache))


def _array(x: Any) -> NDArray[Any]:
    """An engine's array as NumPy; a torch tensor may live on another device."""
    return np.asarray(x.cpu() if hasattr(x, "cpu") else x)


def check_info(backend: Backend) -> None:
    """The facts about the model are those that its logits and its stores show."""
    with opened(backend) as session:
        info = session.info
        assert 0 < info.kv_layers <= info.layers, f"{backend.name}: {info.kv_layers} of {info.layers} layers hold K and V"
        assert info.heads % info.kv_heads == 0, f"{backend.name}: {info.heads} heads over {info.kv_heads} KV heads"
        shape = logits(session, None).shape
        assert shape == (TOKENS, info.vocab), f"{backend.name}: logits {shape} for {TOKENS} tokens and a vocabulary of {info.vocab}"
        layers = {side.layer for side in scores(session, preset("turbo4"))[1].evidence()}
        assert len(layers) == info.kv_layers, f"{backend.name}: {len(layers)} layers went through a store, info says {info.kv_layers}"


def check_baseline(backend: Backend) -> None:
    """The baseline is the engine's own result, before and after a scheme has run: bit for bit, except that float64 may be kept where the
    engine itself computes in float32."""
    with opened(backend) as session:
        tokens, allowed = text(session), 1e-5 if session.info.dtype == "float64" else 0
        before = logits(session, None, TOKENS)
        logits(session, preset("turbo4"))
        after = logits(session, None, TOKENS)
    off = np.abs(before - _array(backend.logits(backend.make(), tokens))).max()
    assert off <= allowed, f"{backend.name}: the baseline differs from the engine alone by {off:.2g}"
    assert np.array_equal(after, before), f"{backend.name}: the baseline changes once a scheme has run"


def check_scores(backend: Backend) -> None:
    """`score` gives what the formulas give on the logits, for the targets that are not negative, and reports every token."""
    scheme = preset("destructive")  # far from the baseline, so that no two formulas agree by chance
    with opened(backend) as session:
        tokens = text(session)
        wanted = np.where(np.arange(TOKENS) % 3, targets(tokens), -1)
        done: list[int] = []
        caches = session.new_cache(scheme), session.new_cache(None)
        got = session.score(tokens, caches[0], wanted, against=caches[1], chunk=CHUNK, progress=done.append)
        alone = session.score(tokens, session.new_cache(scheme), wanted, chunk=CHUNK)
        log_p, log_b = (_log_softmax(logits(session, one)[wanted >= 0]) for one in (scheme, None))
    rows, target = np.arange(len(log_p)), wanted[wanted >= 0]
    expected = {
        "nll": -log_p[rows, target],
        "base_nll": -log_b[rows, target],
        "kld": (np.exp(log_b) * (log_b - log_p)).sum(1),
        "rank": (log_p > log_p[rows, log_b.argmax(1)][:, None]).sum(1),
        "place": (log_p > log_p[rows, target][:, None]).sum(1),
    }
    for name, values in expected.items():
        assert np.allclose(getattr(got, name), values, rtol=0, atol=1e-4), f"{backend.name}: {name} is not what its formula gives"
    for name in ("nll", "place"):
        same = np.array_equal(getattr(alone, name), getattr(got, name))
        assert same, f"{backend.name}: the {name} depends on whether a baseline runs beside it"
    assert not len(alone.kld), f"{backend.name}: {len(alone.kld)} divergences from no baseline"
    assert sum(done) == TOKENS, f"{backend.name}: progress reports {sum(done)} of {TOKENS} tokens"


def _log_softmax(x: NDArray[Any]) -> NDArray[np.float64]:
    wide: NDArray[np.float64] = x.astype(np.float64) - x.max(1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(1, keepdims=True))


def check_identity(backend: Backend) -> None:
    """With `bypass: identity` every difference from the baseline is exactly zero."""
    with opened(backend) as session:
        for scheme in probes():
            got, _ = scores(session, replace(scheme, bypass="identity"))
            off = np.abs(got.nll - got.base_nll).max()
            assert off == 0, f"{backend.name}: {scheme.label}[identity] changes the nll by {off:.2g}"
            assert not got.kld.any(), f"{backend.name}: {scheme.label}[identity] has a divergence of {got.kld.max():.2g}"
            assert not got.rank.any(), f"{backend.name}: {scheme.label}[identity] changes the first choice"


def check_rounding(backend: Backend) -> None:
    """Our attention over unquantized K and V, rotated or not, differs from the engine's by rounding only."""
    with opened(backend) as session:
        for scheme in (preset("f32"), *(replace(one, bypass="bridge") for one in probes())):
            got, _ = scores(session, scheme)
            off = np.abs(got.nll - got.base_nll).max()
            assert off <= ROUNDING[session.info.dtype], f"{backend.name}: {scheme.label} changes the nll by {off:.2g} without a quantizer"


def check_effect(backend: Backend) -> None:
    """A lossy scheme changes the scores, and a destructive one changes them far more."""
    with opened(backend) as session:
        lost = {}
        for scheme in (*probes(), preset("destructive")):
            got, _ = scores(session, scheme)
            assert not np.array_equal(got.nll, got.base_nll), f"{backend.name}: {scheme.label} has no effect on any score"
            lost[scheme.label] = got.kld.mean()
    assert lost.pop("destructive") > 2 * max(lost.values()), f"{backend.name}: the destructive control does little harm beside {lost}"


def check_chunks(backend: Backend) -> None:
    """How the text is cut into forward calls changes nothing but rounding. In float32 codes may flip, so lossy schemes need float64."""
    with opened(backend) as session:
        exact = session.info.dtype == "float64"
        for scheme in (None, preset("f32"), *(probes() if exact else ())):
            whole = logits(session, scheme, TOKENS)
            for chunk in (1, 7, 32):
                off = np.abs(logits(session, scheme, chunk) - whole).max() / np.abs(whole).max()
                what = scheme.label if scheme else "the baseline"
                assert off <= (1e-12 if exact else 1e-5), f"{backend.name}: {what} in chunks of {chunk} differs by {off:.2g}"


def check_evidence(backend: Backend) -> None:
    """Every lossy run leaves evidence that the audit accepts, over all tokens, with coverage above zero."""
    with opened(backend) as session:
        for scheme in probes():
            got, cache = scores(session, scheme)
            evidence = cache.evidence()
            identical = np.array_equal(got.nll, got.base_nll)
            objections = audit(evidence, session.info.kv_layers, lossless=scheme.lossless_in(session.info.dtype), identical=identical)
            assert not objections, f"{backend.name}: {scheme.label}: {'; '.join(objections)}"
            assert coverage(evidence) > 0, f"{backend.name}: {scheme.label}: nothing that was attended was packed"
            assert {side.tokens + side.tokens_forgotten for side in evidence} == {TOKENS}, (
                f"{backend.name}: {scheme.label}: not every layer holds all tokens"
            )
        assert session.new_cache(None).evidence() == [], f"{backend.name}: the engine's own cache claims evidence"


def check_unknown_kernel(backend: Backend) -> None:
    """A kernel that does not exist is refused by its name, never replaced in silence."""
    with opened(backend) as session:
        for kernel in ("warp", "attend=warp", "warp=reference"):
            reason = refusal(session.new_cache, preset("turbo4"), Terms(kernel))
            assert reason is not None, f"{backend.name}: kernel {kernel!r} is accepted"
            assert "warp" in reason, f"{backend.name}: kernel {kernel!r} is refused without being named: {reason}"


def check_sessions_apart(backend: Backend) -> None:
    """Two open sessions do not disturb each other, and closing one leaves the other as it was."""
    scheme = preset("turbo4")
    with opened(backend) as session:
        alone = logits(session, scheme), logits(session, None)
    with opened(backend) as one:
        with opened(backend) as two:
            pairs = list(zip(_pieces(one, scheme, CHUNK), _pieces(two, None, CHUNK), strict=True))
        left = logits(one, scheme)
    for expected, pieces in zip(alone, zip(*pairs, strict=True), strict=True):
        assert np.array_equal(np.concatenate(pieces), expected), f"{backend.name}: a second open session changes the logits"
    assert np.array_equal(left, alone[0]), f"{backend.name}: closing one session changes what another computes"


def check_close(backend: Backend) -> None:
    """Closing, twice or after a failure in the middle, leaves the model as it was."""
    model = backend.make()
    before = backend.state(model)
    session = backend.open_session(model)
    tokens = text(session)

    def fail(done: int) -> None:
        raise KeyboardInterrupt(done)

    try:
        session.score(tokens, session.new_cache(preset("turbo4")), targets(tokens), chunk=CHUNK, progress=fail)
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError(f"{backend.name}: score swallows an interrupt")
    session.close()
    session.close()
    assert backend.state(model) == before, f"{backend.name}: close leaves {backend.state(model)}, found was {before}"
    same = np.array_equal(_array(backend.logits(model, tokens)), _array(backend.logits(backend.make(), tokens)))
    assert same, f"{backend.name}: the model computes something else once a session has been closed"


def check_context(backend: Backend) -> None:
    """A cache that takes a context over goes on as if it had run it: bit for bit with the engine's own cache and in the identity control.
    A scheme packs it and claims no attention for it, and what a quiet cache leaves out is made up for."""
    with opened(backend) as session:
        tokens, scheme = text(session), preset("turbo4")
        held, rest = session.context(tokens[:CHUNK]), tokens[CHUNK:]
        whole = list(_pieces(session, None, CHUNK))
        expected = np.concatenate(whole[1:])
        identity = replace(scheme, bypass="identity")
        if reason := refusal(session.new_cache, identity, context=held):
            assert "context" in reason, f"{backend.name}: a context is refused for another reason: {reason}"
            return  # in a sliding window whose cache keeps an order of its own
        for one in (None, identity, None):  # twice: a context may be used any number of times
            cache = session.new_cache(one, context=held)
            got = np.concatenate([_array(session.forward(rest[i : i + CHUNK], cache)) for i in range(0, len(rest), CHUNK)])
            what = one.label if one else "the engine's own cache"
            assert np.array_equal(got, expected), f"{backend.name}: {what} does not go on from a context as it would have by itself"
        quiet = session.new_cache(scheme, Terms(quiet=True), held)
        assert not any(side.attended for side in quiet.evidence()), f"{backend.name}: a context counts as attended"
        assert quiet.kv_bytes() < session.new_cache(None, context=held).kv_bytes(), f"{backend.name}: a packed context is no smaller"
        last = session.forward(rest[:2], quiet, last=True)
        assert last.shape == (1, session.info.vocab), f"{backend.name}: {last.shape[0]} rows of logits for the last token"
        first_choice = int(_array(last)[0].argmax())
        assert session.choose(last) == first_choice, f"{backend.name}: {session.choose(last)} is chosen, {first_choice} is most likely"
        quiet.verify()
        objections = audit(quiet.evidence(), session.info.kv_layers, lossless=False, identical=False)
        assert not objections, f"{backend.name}: after verify: {'; '.join(objections)}"
        compared = [side.attend_error for side in quiet.evidence()]
        assert None not in compared, f"{backend.name}: verify compares the attention of no step"


def check_saved(backend: Backend) -> None:
    """A cache whose state was handed out and taken back goes on to the last bit as one that never was. What cannot be saved is refused with
    the reason, and a state that is another scheme's, too. The hash of the weights stays."""
    with opened(backend) as session:
        tokens = text(session)
        held = session.context(tokens[:CHUNK])
        assert session.weights_sha256() == session.weights_sha256(), f"{backend.name}: the hash of its weights changes"
        for scheme in (None, *probes()):
            if reason := refusal(session.new_cache, scheme, context=held) or refusal(session.new_cache(scheme, context=held).state):
                assert "context" in reason or "cannot be saved" in reason, f"{backend.name}: refused for another reason: {reason}"
            else:
                _goes_on(backend.name, session, scheme, held, tokens[CHUNK:])


def _goes_on(name: str, session: Session, scheme: Scheme | None, held: Any, rest: Ids) -> None:
    never_saved, what = session.new_cache(scheme, context=held), scheme.label if scheme else "the engine's own cache"
    state = never_saved.state()
    back = session.new_cache(scheme, context=state)
    worst = min(float(one.cosine.min()) for one in back.agreement(held))
    assert worst > (0.9 if scheme else 1 - 1e-6), f"{name}: what is taken back of {what} agrees with the context by {worst:.3f} only"
    expected, got = (
        np.concatenate([_array(session.forward(rest[i : i + 7], cache)) for i in range(0, len(rest), 7)]) for cache in (never_saved, back)
    )
    assert np.array_equal(got, expected), f"{name}: {what} goes on in another way once it has been saved"
    strange = refusal(session.new_cache, preset("turbo3"), context=state)
    assert strange, f"{name}: the state of {what} is taken for that of turbo3"


def check_exact(backend: Backend) -> None:
    """A context given out as arrays is what the engine's own cache saves of it, for every layer that holds keys and values; keys of a
    longer text begin with those of a shorter one."""
    with opened(backend) as session:
        tokens, info = text(session), session.info
        if reason := refusal(session.exact, session.context(tokens)):
            assert "context" in reason, f"{backend.name}: arrays are refused for another reason: {reason}"
            return  # in a sliding window whose cache keeps an order of its own
        whole, begin = session.exact(session.context(tokens)), session.exact(session.context(tokens[:7]))
        assert len(whole) == info.kv_layers, f"{backend.name}: arrays of {len(whole)} layers, {info.kv_layers} hold keys and values"
        for layer, first in zip(whole, begin, strict=True):
            _shaped(backend.name, session, layer)
            kept = layer.k.shape[1]
            off = 0.0 if kept < TOKENS else float(np.abs(layer.k[:, :7] - first.k).max() / np.abs(first.k).max())
            assert off < 1e-4, f"{backend.name}: the keys of layer {layer.layer} change by {off:.2g} with what follows them"
        own = session.new_cache(None, context=session.context(tokens))
        if not refusal(own.state):
            _same(backend.name, own.state(), {f"{one.layer}.{side}": getattr(one, side) for one in whole for side in SIDES})


def _shaped(name: str, session: Session, layer: Exact) -> None:
    heads, size, tokens = session.info.kv_heads, session.info.head_dim, layer.k.shape[1]
    wanted = {"k": (heads, tokens, size), "v": (heads, tokens, size), "k_bias": (heads, size)}
    for what, shape in wanted.items():
        x = getattr(layer, what)
        assert x is None or x.shape == shape, f"{name}: {what} of layer {layer.layer} is {x.shape}, not {shape}"


def _same(name: str, state: State, arrays: dict[str, Any]) -> None:
    for entry in state.entries:
        ((form, data),) = entry.arrays
        kept = data.view(form.dtype).reshape(form.shape)[0].astype(np.float32)
        assert np.array_equal(kept, arrays[entry.key]), f"{name}: {entry.key} is not what the engine's own cache holds"


ALWAYS: tuple[Check, ...] = (
    check_info,
    check_baseline,
    check_scores,
    check_identity,
    check_rounding,
    check_effect,
    check_chunks,
    check_evidence,
    check_context,
    check_saved,
    check_exact,
    check_unknown_kernel,
    check_sessions_apart,
    check_close,
)
