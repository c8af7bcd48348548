"""What `tqbench schemes` says about schemes: in words, as YAML, and to the byte."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tqbench.__main__ import main
from tqbench.cli import catalog, describe
from tqbench.core import registry
from tqbench.core.presets import preset, presets, read

MINE: dict[str, Any] = {
    "name": "mine",
    "k": {"codec": "block", "bits": 8, "rotation": "haar", "rotation_group": 64, "pad": 128, "center": True, "rope": "pre", "window": 32},
    "v": {"codec": "affine", "bits": 2, "axis": "channel", "flush": 64},
    "sinks": 1,
    "protect": {"first": 2, "last": 1, "scheme": "bf16"},
    "layers": [{"at": [3, -4], "scheme": {"name": "inner", "k": "f16", "v": "q4_0"}}],
    "gqa": {"at_least": 6, "scheme": "q8_0"},
    "logits": {"form": "grow", "value": 0.0058},
}


def section(text: str, title: str) -> list[str]:
    """The indented lines under a title."""
    found = re.search(rf"^{title}.*\n((?:  .*\n?)+)", text, flags=re.MULTILINE)
    assert found, text
    return [line[2:] for line in found[1].splitlines()]


def test_the_bytes_of_a_unit_are_drawn_and_summed() -> None:
    """q8_0: 64 codes of one byte and two fp16 scales."""
    shown = describe.show(preset("q8_0"), 64)
    assert "\nbytes of keys and values at head_dim 64: one token of one KV head\n" in shown
    bar, *lines = section(shown, "bytes of keys and values")
    assert re.fullmatch(r"│ codes +│ scales │", bar)
    assert lines == [
        "codes   int8     [64]  64  payload",
        "scales  float16  [2]    4  metadata",
        "68 bytes for 64 values: 8.5 bits per value",
    ]


def test_a_unit_of_many_tokens_is_drawn_whole() -> None:
    """kivi2's keys: 32 tokens of 128 channels at 2 bits, and two fp16 figures per channel."""
    shown = describe.show(preset("kivi2"), 128)
    assert "\nbytes of keys at head_dim 128: 32 tokens of one KV head\n" in shown
    assert section(shown, "bytes of keys")[-1] == "1536 bytes for 4,096 values: 3 bits per value"
    assert section(shown, "tags") == ["K packs 32 tokens together"]


def test_a_head_dim_that_is_not_taken_has_no_bytes_but_a_reason() -> None:
    shown = describe.show(preset("q8_0"), 80)
    assert section(shown, "bytes of keys") == ["unsupported: blocks of 32 channels do not fit head_dim 80"]


def test_every_step_before_the_codec_is_told_in_its_order() -> None:
    steps = section(describe.show(read(MINE), 128), "keys")
    assert steps[:4] == [
        "keys as they were before the rotary embedding, which is applied when they are read",
        "the calibrated mean of each channel subtracted",
        "zero-padded to a multiple of 128 channels",
        "groups of up to 64 channels rotated by haar",
    ]
    assert steps[4].startswith("codec block: ")
    assert "bits 8" in steps[5]


def test_all_of_the_policy_is_told() -> None:
    assert section(describe.show(read(MINE), 128), "policy") == [
        "the first token exact",
        "keys of the last 32 tokens exact",
        "values packed 64 tokens at a time, exact until then",
        "the first 2 layers and the last layer: bf16 (protected, so they do not count as covered)",
        "layer 3, -4: K {codec: cast}, V {codec: block, bits: 4}",
        "6 or more query heads per KV head: q8_0 instead",
        "attention logits times 1 + 0.0058·√ln N over N keys",
    ]


def test_tags_say_what_checks_choose_by() -> None:
    assert section(describe.show(read(MINE), 128), "tags") == ["needs calibration, V packs 32 tokens together, pre-RoPE keys"]
    assert section(describe.show(preset("destructive"), 64), "tags") == ["destructive"]
    assert section(describe.show(preset("f16"), 64), "tags") == ["lossless in float16"]


@pytest.mark.parametrize("data", [*presets(), "q8_0/turbo3", MINE], ids=lambda data: data if isinstance(data, str) else "mine")
def test_what_is_shown_as_yaml_is_the_scheme(data: Any) -> None:
    scheme = read(data)
    for head_dim in (64, 128):
        (again,) = yaml.safe_load("\n".join(section(describe.show(scheme, head_dim), "in a suite")))
        assert read(again) == scheme


def test_families_stand_together_and_the_controls_last() -> None:
    families = [family for _, family, *_ in catalog.rows(64)]
    assert len(list(dict.fromkeys(families))) == sum(a != b for a, b in zip(families, ["", *families], strict=False))
    assert families[-1] == "controls"
    assert sorted(name for name, *_ in catalog.rows(64)) == sorted(presets())


def test_bits_are_those_of_the_head_dim_and_a_refusal_takes_their_place() -> None:
    rows = {row[0]: row[2:] for row in catalog.rows(80)}
    assert rows["q8_0"] == ("–", "–", "unsupported: blocks of 32 channels do not fit head_dim 80")
    assert rows["f16"][:2] == ("16", "16")
    assert {row[0]: row[2:4] for row in catalog.rows(128)}["turbo3"] == ("3.125", "3.125")


def test_the_page_has_a_row_for_every_preset_that_is_shipped() -> None:
    page = catalog.markdown()
    shipped = [name for name, data in registry.preset_data().items() if data["family"] in registry.modules("tqbench.schemes")]
    assert sorted(re.findall(r"^\| `([^`]+)` \|", page, flags=re.MULTILINE)) == sorted(shipped)
    row = next(line for line in page.splitlines() if line.startswith("| `kivi2` "))
    assert "| 3 | 3 | keys packed 128 tokens at a time, exact until then; values of the last 128 tokens exact |" in row


def test_a_name_that_is_no_kv_scheme_is_refused_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "refused", lambda: {"tq9_w": "it stores weights"})
    assert main(["schemes", "show", "tq9_w"]) == 2
    assert capsys.readouterr().err == "'tq9_w' is no scheme for a KV cache: it stores weights\n"
    assert "* `tq9_w`: it stores weights\n" in catalog.markdown()
