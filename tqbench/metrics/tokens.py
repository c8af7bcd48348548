"""The plain formulas per token, in float64 NumPy. Sessions compute the same on their device and are held to these."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def log_softmax(logits: Array) -> Array:
    """log p of every token of the vocabulary, per row."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def nll(logits: Array, targets: NDArray[np.int64]) -> Array:
    """−log p(target)."""
    return np.asarray(-np.take_along_axis(log_softmax(logits), targets[:, None], axis=-1)[:, 0])


def kld(base: Array, logits: Array) -> Array:
    """KL(base ‖ scheme) = Σ p_base (log p_base − log p), in nats."""
    log_b = log_softmax(base)
    return np.asarray((np.exp(log_b) * (log_b - log_softmax(logits))).sum(axis=-1))


def rank(base: Array, logits: Array) -> NDArray[np.int64]:
    """How many tokens the scheme puts before the baseline's first choice; 0 is the same top-1."""
    first = np.take_along_axis(logits, base.argmax(axis=-1, keepdims=True), axis=-1)
    return np.asarray((logits > first).sum(axis=-1))
