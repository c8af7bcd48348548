"""What keys and values look like before anything is packed, in figures that may tell where packing will hurt; and how well they tell it.

Arrays are [kv_heads, tokens, head_dim] in the form in which attention takes them, keys after the rotary embedding.
"""

from __future__ import annotations

from math import atanh, sqrt, tanh

import numpy as np
from numpy.typing import NDArray

from tqbench.core.record import Estimate
from tqbench.core.session import Exact
from tqbench.metrics.paired import student

Array = NDArray[np.float64]
TRAITS = {
    "norm_mean": "mean length of a vector",
    "norm_max": "the longest",
    "norm_spread": "standard deviation of the lengths of a head's vectors, relative to their mean",
    "bias": "length of a head's key bias, relative to the mean length of its keys; the largest of the heads",
    "kurtosis": "mean over vectors of the fourth moment over the square of the second; 3 or a little less is Gaussian, more is outliers",
    "kurtosis_rotated": "the same after a random rotation",
    "channel_max": "the largest entry of a head relative to the root mean square of its entries; the largest of the heads",
}
LEAST = 4  # pairs that a rank correlation has an interval with


def traits(layer: Exact) -> dict[str, dict[str, float | None]]:
    """The figures of K and of V of a layer."""
    k, v = (np.asarray(x, np.float64) for x in (layer.k, layer.v))
    bias = None if layer.k_bias is None else float((np.linalg.norm(layer.k_bias, axis=-1) / _lengths(k).mean(1)).max())
    return {"k": _of(k) | {"bias": bias}, "v": _of(v)}


def _of(x: Array) -> dict[str, float | None]:
    lengths = _lengths(x)
    mean_square = np.maximum((x**2).mean((1, 2)), np.finfo(np.float64).tiny)
    return {
        "norm_mean": float(lengths.mean()),
        "norm_max": float(lengths.max()),
        "norm_spread": float((lengths.std(1) / lengths.mean(1)).mean()),
        "kurtosis": kurtosis(x),
        "kurtosis_rotated": kurtosis(x @ _rotation(x.shape[-1])),
        "channel_max": float((np.abs(x).max((1, 2)) / np.sqrt(mean_square)).max()),
    }


def kurtosis(x: Array) -> float:
    """Over the channels of each vector, in the mean; vectors of zeros have none."""
    second = (x**2).mean(-1)
    here = second > 0
    return float(((x**4).mean(-1)[here] / second[here] ** 2).mean()) if here.any() else 0.0


def _lengths(x: Array) -> Array:
    """Of each vector; one of zeros counts as barely longer, so that it can be divided by."""
    return np.asarray(np.maximum(np.linalg.norm(x, axis=-1), np.finfo(np.float32).tiny))


def _rotation(n: int) -> Array:
    """Any one will do; it is the same every time."""
    return np.asarray(np.linalg.qr(np.random.default_rng(0).standard_normal((n, n)))[0])


def spearman(x: Array, y: Array) -> Estimate | None:
    """The rank correlation of pairs with its 95 % interval (Fisher's z with the error of Bonett and Wright, Student's t for few pairs);
    None where one of the two does not vary, or where there are too few pairs for an interval."""
    ranks = _ranks(x), _ranks(y)
    spread = [float(rank.std()) for rank in ranks]
    if len(x) < LEAST or not all(spread):
        return None
    a, b = (rank - rank.mean() for rank in ranks)
    rho = min(1.0, max(-1.0, float((a * b).mean()) / (spread[0] * spread[1])))
    if abs(rho) == 1:
        return Estimate(rho)
    reach = student(0.975, len(x) - 1) * sqrt((1 + rho**2 / 2) / (len(x) - 3))
    return Estimate(rho, tanh(atanh(rho) - reach), tanh(atanh(rho) + reach))


def _ranks(x: Array) -> Array:
    """From 1; what is equal shares its mean rank."""
    _, where, counts = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[where])
