"""What an audit finds, one contradiction at a time."""

from dataclasses import replace

import pytest

from tqbench.core.evidence import SideEvidence, audit, audit_control, coverage

HONEST = SideEvidence(
    layer=0,
    side="k",
    codec="block",
    order="half_split",
    tokens=10,
    tokens_packed=8,
    tokens_declared=8,
    bytes_payload=80,
    bytes_metadata=16,
    bytes_declared=96,
    bytes_exact=20,
    bytes_slack=0,
    lossless=False,
    attended=55,
    attended_packed=44,
    attended_declared=44,
    error=0.01,
    encode="reference",
    decode="native",
    attend="torch",
    entered={"encode": 1, "decode": 1, "attend": 1},
    passed_over={},
)
OFF = "layer 0 v: attention is 2.0e-04 off the reference on the same data, at most 1e-04 is rounding"
PAIR = [HONEST, replace(HONEST, side="v")]


def audited(changed, layers=1, lossless=False, identical=False):
    return audit([HONEST, replace(HONEST, side="v", **changed)], layers, lossless=lossless, identical=identical)


def test_an_honest_run_has_nothing_to_answer_for():
    assert audited({}) == []


@pytest.mark.parametrize(
    ("changed", "finding"),
    [
        ({"tokens_packed": 7}, "layer 0 v: 7 tokens are packed, the policy declares 8"),
        ({"attended_packed": 43}, "layer 0 v: attention was handed 43 packed positions, the policy declares 44"),
        (
            {"attend_error": 2e-4, "attend_limit": 1e-4},
            "layer 0 v: attention is 2.0e-04 off the reference on the same data, at most 1e-04 is rounding",
        ),
        ({"bytes_payload": 81}, "layer 0 v: 97 bytes are resident, the layout declares 96"),
        ({"entered": {"encode": 1, "decode": 0}}, "layer 0 v: decode was never entered"),
        ({"error": 0.0}, "layer 0 v: the codec error is zero, so nothing was quantized"),
        ({"error": None}, "layer 0 v: the codec error is zero, so nothing was quantized"),
    ],
)
def test_each_contradiction_is_found_with_its_place(changed, finding):
    assert audited(changed) == [finding]


def test_a_layer_that_went_past_the_store_is_found():
    assert audited({}, layers=2) == ["1 layers went through the store, the model has 2 that hold K and V"]


def test_scores_equal_to_the_baseline_are_found():
    assert audited({}, identical=True) == ["every score equals the baseline's bit for bit, so the scheme had no effect"]
    assert audited({"lossless": True, "error": 0.0}, lossless=True, identical=True) == []


def test_a_run_that_packed_nothing_is_found():
    idle = replace(HONEST, tokens_packed=0, tokens_declared=0, attended_packed=0, attended_declared=0, error=None)
    assert audit([idle], 1, lossless=False, identical=False) == ["no attended key or value was packed"]


def test_a_lossless_side_beside_a_lossy_one_may_have_no_error():
    assert audited({"lossless": True, "error": 0.0}) == []


def test_coverage_is_the_packed_share_of_what_was_attended():
    assert coverage(PAIR) == 44 / 55
    assert coverage([HONEST, replace(HONEST, attended_packed=0)]) == 22 / 55
    assert coverage([]) == 0


CONTROL = {"bypass": None, "lossless": True, "dtype": "float32", "identical": False, "kld": 1e-8}


@pytest.mark.parametrize(
    ("changed", "finding"),
    [
        ({}, None),
        ({"kld": 1e-4}, "nothing is lost here, yet KLD is 1.00e-04"),
        ({"kld": float("nan")}, "nothing is lost here"),
        ({"lossless": False, "kld": 5.0}, None),
        ({"bypass": "identity", "identical": True, "kld": 0.0}, None),
        ({"bypass": "identity"}, "the identity control differs from the baseline"),
    ],
)
def test_controls_are_held_to_what_they_promise(changed, finding):
    found = audit_control(**{**CONTROL, **changed})
    assert len(found) == (finding is not None)
    assert all(text.startswith(finding) for text in found)
