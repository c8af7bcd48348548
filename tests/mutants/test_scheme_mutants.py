"""A scheme that uses all of the policy, and for every scheme check one that is broken in exactly that way."""

import dataclasses
from itertools import count

import numpy as np
import pytest
import torch

from tqbench.codecs.block import Block
from tqbench.codecs.cast import Cast
from tqbench.codecs.codebook import Codebook
from tqbench.core.codec import Tags
from tqbench.core.errors import Unsupported
from tqbench.core.presets import preset, read
from tqbench.core.scheme import Scheme, Side
from tqbench.testing import scheme_checks as checks

K = {"codec": "affine", "bits": 2, "axis": "channel", "window": 3, "flush": 64}
HONEST = read({"name": "honest", "k": K, "v": "q4_0", "sinks": 2, "window": 5, "protect": {"first": 1, "last": 1, "scheme": "f16"}})


def of(side: Side) -> Scheme:
    """A scheme of nothing but this side."""
    return Scheme("broken", side, side)


def broken(**methods) -> Scheme:
    """The honest scheme with some of its methods replaced on this one object."""
    scheme = dataclasses.replace(HONEST)
    for name, method in methods.items():
        object.__setattr__(scheme, name, method)
    return scheme


def refuse(reason, above):
    def check(head_dim):
        if head_dim > above:
            raise Unsupported(reason.format(head_dim))

    return check


class Steady(Side):
    """Loses the packed region at the third position."""

    def packed(self, t, sinks=0):
        return 0 if t == 3 else t + 1


class Counting(Side):
    """Packs one token per question."""

    CALLS = count()

    def packed(self, t, sinks=0):
        return min(next(self.CALLS), t + 1)


class Greedy(Side):
    """Packs the window too."""

    def packed(self, t, sinks=0):
        return t + 1


class Lazy(Side):
    """Packs nothing at all."""

    def packed(self, t, sinks=0):
        return min(sinks, t + 1)


class Cutting(Side):
    """Leaves units half packed."""

    def packed(self, t, sinks=0):
        return max(0, t + 1 - self.window)


@dataclasses.dataclass(frozen=True)
class PerCall(Cast):
    """Keeps the mean over the tokens of a call."""

    def quantize(self, y):
        return super().quantize(y.mean(2, keepdim=True).expand_as(y))


@dataclasses.dataclass(frozen=True)
class Undeclared(Cast):
    """Keeps float32 and does not say so."""

    tags = Tags()


@dataclasses.dataclass(frozen=True)
class Leaky(Codebook):
    """Its rotation does not come back."""

    def inverse(self, y, head_dim):
        return super().inverse(y, head_dim) * 1.001


@dataclasses.dataclass(frozen=True)
class ForgetsBypass(Scheme):
    """Quantizes in its own controls."""

    def for_layer(self, index, layers, sharing=1):
        return dataclasses.replace(super().for_layer(index, layers, sharing), bypass=None)


FORGETFUL = ForgetsBypass("broken", Side(Block()), Side(Block()))
MUTANTS = {
    "forgets its sinks": (checks.check_data_round_trip, broken(to_data=lambda: HONEST.to_data() | {"sinks": 0}), "comes back"),
    "invents a key": (checks.check_data_round_trip, broken(to_data=lambda: HONEST.to_data() | {"snks": 2}), "did you mean 'sinks'"),
    "holds a NumPy number": (checks.check_yaml_round_trip, broken(to_data=lambda: HONEST.to_data() | {"sinks": np.int64(2)}), "YAML"),
    "loses text in YAML": (checks.check_yaml_round_trip, broken(to_data=lambda: HONEST.to_data() | {"name": "other"}), "comes back"),
    "refuses without a reason": (checks.check_head_dims, broken(check=refuse("no", above=64)), "without naming it"),
    "takes what its codecs refuse": (checks.check_head_dims, broken(check=lambda head_dim: None), "its store does not"),
    "refuses everything": (checks.check_head_dims, broken(check=refuse("{} is no head_dim", above=0)), "takes none"),
    "shrinks": (checks.check_boundary, of(Steady(Block())), "shrinks"),
    "counts questions": (checks.check_boundary, of(Counting(Block())), "asked before"),
    "packs its window": (checks.check_boundary, of(Greedy(Block(), window=9)), "allowed is"),
    "cuts a unit": (checks.check_boundary, of(Cutting(preset("kivi2").k.codec, flush=32)), "the unit is 32"),
    "encodes per call": (checks.check_chunks, of(Side(PerCall("float32"))), "chunks of 1 differ"),
    "declares too few bits": (checks.check_bits, broken(bits=lambda head_dim: (2.0, 4.0)), "2.0 declared"),
    "packs nothing": (checks.check_bits, of(Lazy(Block())), "nothing is packed"),
    "packs more than its policy": (checks.check_ledger, of(Greedy(Block(), window=9)), "the ledger says"),
    "loses nothing": (checks.check_evidence, of(Side(Undeclared("float32"))), "error is zero"),
    "is never active": (checks.check_evidence, of(Lazy(Block())), "no attended key or value was packed"),
    "quantizes its identity": (checks.check_identity, FORGETFUL, "values change"),
    "quantizes its bridge": (checks.check_bridge, FORGETFUL, "without a quantizer"),
    "leaks in its bridge": (checks.check_bridge, of(Side(Leaky())), "without a quantizer"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_rejected(name):
    check, mutant, message = MUTANTS[name]
    with pytest.raises(AssertionError, match=message):
        check(mutant)


@pytest.mark.parametrize("check", list(checks.checks_for(HONEST)), ids=lambda check: check.__name__)
def test_honest_scheme_passes(check):
    check(HONEST)


def test_every_check_has_a_mutant_and_is_offered(all_checks):
    assert {check for check, _, _ in MUTANTS.values()} == all_checks(checks) == set(checks.checks_for(HONEST))


def test_a_control_is_not_asked_for_controls_of_its_own():
    identity = dataclasses.replace(HONEST, bypass="identity")
    assert not {checks.check_identity, checks.check_bridge} & set(checks.checks_for(identity))


def test_torch_generator_is_left_alone():
    before = torch.random.get_rng_state()
    checks.check_chunks(preset("q4_0"))
    assert torch.equal(torch.random.get_rng_state(), before)
