"""An honest second form of decode, and for every kernel check one that is broken in exactly that way."""

from itertools import count

import pytest
import torch

from tqbench.core.op import Choice, Impl, Op
from tqbench.core.presets import preset
from tqbench.kernels import decode
from tqbench.testing import kernel_checks as checks

reference = decode.OP.impls[1].load()
CALLS = count(1)


def contiguous(x):
    """What the memory holds where a contiguous tensor of that shape would begin."""
    return x.as_strided(x.shape, torch.empty(x.shape).stride())


def form(fn, refuses=lambda codec, place: None, op=Op):
    impl = Impl("fast", lambda: fn, refuses)
    return checks.Form(op("decode", (impl, Impl("reference", lambda: reference))), impl, preset("q8_0"))


def honest(codec, packed, head_dim, like):
    return reference(codec, packed, head_dim, like).clone()


def imprecise(codec, packed, head_dim, like):
    return reference(codec, packed, head_dim, like) * (1 + 1e-6)


def another_dtype(codec, packed, head_dim, like):
    return reference(codec, packed, head_dim, like).double()


def unsteady(codec, packed, head_dim, like):
    return reference(codec, packed, head_dim, like) + next(CALLS)


def destructive(codec, packed, head_dim, like):
    out = reference(codec, packed, head_dim, like)
    packed["scales"].zero_()
    return out


def unfinished(codec, packed, head_dim, like):
    done = reference(codec, packed, head_dim, like)
    out = torch.empty_like(done)
    out[..., 1:] = done[..., 1:]
    return out


def contiguous_only(codec, packed, head_dim, like):
    return reference(codec, {name: contiguous(array) for name, array in packed.items()}, head_dim, like)


class FallsBack(Op):
    """Takes another form in silence."""

    def resolve(self, codec, wanted="auto", place=checks.PLACE):
        return Choice(self.name, "reference", reference, {"fast": "not today"})


class HidesReason(Op):
    """Gives a reason of its own."""

    def resolve(self, codec, wanted="auto", place=checks.PLACE):
        return super().resolve(codec, wanted, place) if wanted != "auto" else Choice(self.name, "reference", reference, {"fast": "slow"})


def refuses(codec, place):
    return "it is a toy"


MUTANTS = {
    "refuses without a reason": (checks.check_choice, form(honest, lambda codec, place: " "), "without a reason"),
    "falls back in silence": (checks.check_choice, form(honest, op=FallsBack), "reference was chosen"),
    "runs what it refuses": (checks.check_choice, form(honest, refuses, FallsBack), "is chosen when asked for by name"),
    "hides the reason": (checks.check_choice, form(honest, refuses, HidesReason), "another reason"),
    "rounds": (checks.check_reference, form(imprecise), "implementation error"),
    "gives another dtype": (checks.check_reference, form(another_dtype), "the reference gives"),
    "depends on the call": (checks.check_repeatable, form(unsteady), "two runs differ"),
    "writes to its input": (checks.check_inputs_untouched, form(destructive), "an input was changed"),
    "leaves a column": (checks.check_everything_written, form(unfinished), "fresh memory"),
    "ignores strides": (checks.check_views, form(contiguous_only), "strided inputs"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_rejected(name):
    check, mutant, message = MUTANTS[name]
    with pytest.raises(AssertionError, match=message):
        check(mutant)


@pytest.mark.parametrize("toy", [form(honest), form(honest, refuses)], ids=["serves", "refuses"])
def test_honest_form_passes(toy):
    for check in checks.checks_for(toy):
        check(toy)


def test_every_check_has_a_mutant_and_is_offered(all_checks):
    assert {check for check, _, _ in MUTANTS.values()} == all_checks(checks) == set(checks.checks_for(form(honest)))


def test_what_is_refused_is_only_asked_for_its_reason():
    assert list(checks.checks_for(form(honest, refuses))) == [checks.check_choice]


def test_poison_is_taken_back():
    checks.check_everything_written(form(honest))
    assert not torch.are_deterministic_algorithms_enabled()
