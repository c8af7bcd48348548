"""Choosing a form of an operation."""

import pytest

from tqbench.codecs.block import Block
from tqbench.core.errors import Unsupported
from tqbench.core.op import Impl, Op, Place

CODEC = Block()


def form(name, reason=None, platform="torch"):
    return Impl(name, lambda: lambda *args: (name, *args), lambda codec, place: reason, platform)


OP = Op(
    "paint", (form("roller", "the wall is wet"), form("spray", "no power"), form("brush"), form("finger"), form("pixel", platform="mlx"))
)


def test_auto_takes_the_first_that_can_run_and_records_why_not_the_others():
    choice = OP.resolve(CODEC)
    assert (choice.op, choice.impl) == ("paint", "brush")
    assert choice.refused == {"roller": "the wall is wet", "spray": "no power"}


def test_a_named_form_is_taken_even_if_it_is_not_the_first():
    choice = OP.resolve(CODEC, "finger")
    assert choice.impl == "finger"
    assert choice.refused == {}


def test_a_named_form_that_cannot_run_is_an_error_that_says_why():
    with pytest.raises(Unsupported, match="paint: the spray form cannot run: no power"):
        OP.resolve(CODEC, "spray")


def test_a_name_that_does_not_exist_is_an_error_that_lists_the_forms():
    with pytest.raises(Unsupported, match=r"paint has no torch form called 'airbrush' \(it has: auto, roller, spray, brush, finger\)"):
        OP.resolve(CODEC, "airbrush")


def test_forms_of_another_platform_do_not_exist_here():
    assert OP.resolve(CODEC, "auto", Place("mlx")).impl == "pixel"
    with pytest.raises(Unsupported, match="paint has no torch form called 'pixel'"):
        OP.resolve(CODEC, "pixel")


def test_auto_without_any_form_says_why_for_each():
    with pytest.raises(Unsupported, match="paint: no form can run: roller: the wall is wet; spray: no power"):
        Op("paint", OP.impls[:2]).resolve(CODEC)


def test_refusals_see_codec_and_place():
    seen = []
    impl = Impl("any", lambda: lambda: None, lambda codec, place: seen.append((codec, place)))
    Op("paint", (impl,)).resolve(CODEC, "auto", Place(device="cuda", dtype="bfloat16"))
    assert seen == [(CODEC, Place("torch", "cuda", "bfloat16"))]


def test_a_form_is_loaded_only_when_it_is_chosen():
    loaded = []
    forms = [Impl(name, lambda name=name: loaded.append(name)) for name in ("first", "second")]
    Op("paint", tuple(forms)).resolve(CODEC, "second")
    assert loaded == ["second"]


def test_a_choice_counts_how_often_it_was_entered():
    choice = OP.resolve(CODEC)
    assert choice.calls == 0
    assert choice("red", 2) == ("brush", "red", 2)
    choice("blue")
    assert choice.calls == 2
