"""Schemes as data: what is accepted, what is refused and with which words, what is protected."""

import pytest
import yaml

from tqbench.codecs.block import Block
from tqbench.codecs.codebook import Codebook
from tqbench.core.errors import ConfigError, Unsupported
from tqbench.core.presets import parse, preset, presets, read
from tqbench.core.scheme import Side


def problems(data):
    """Every mistake with its path; parse returns nothing then."""
    found = {}
    scheme = parse(data, lambda at, text: found.setdefault(".".join(map(str, at)), text))
    assert (scheme is None) == bool(found)
    return found


def mine(**changes):
    return {"name": "mine", "k": {"codec": "block", "bits": 8}, "v": "turbo3"} | changes


def test_the_example_of_the_design_is_a_scheme():
    text = "{name: mine, k: {codec: codebook, bits: 3, window: 64}, v: q8_0, sinks: 4, protect: {first: 1, last: 1, scheme: q8_0}}"
    scheme = read(yaml.safe_load(text))
    assert (scheme.name, scheme.sinks, scheme.protect.first, scheme.protect.last) == ("mine", 4, 1, 1)
    assert scheme.k == Side(Codebook(3), window=64)
    assert scheme.v == preset("q8_0").v
    assert scheme.protect.scheme == preset("q8_0")


@pytest.mark.parametrize(
    ("data", "at", "text"),
    [
        ("q80", "", "unknown scheme 'q80'; did you mean 'q8_0'?"),
        (["q8_0"], "", "a scheme is a name or a mapping with k and v, got list"),
        (mine(windw=8), "windw", "unknown scheme key 'windw'; did you mean 'window'?"),
        (mine(k={"codec": "blok"}), "k.codec", "unknown codec 'blok'; did you mean 'block'?"),
        (mine(k={"bits": 8}), "k.codec", "unknown codec 'None'"),
        (mine(k={"codec": "block", "bit": 8}), "k.bit", "unknown parameter of codec 'block' 'bit'; did you mean 'bits'?"),
        (mine(k={"codec": "block", "bits": 7}), "k.bits", "bits must be one of 4, 5, 8, got 7"),
        (mine(k={"codec": "block", "bits": "8"}), "k.bits", "bits must be one of 4, 5, 8, got '8'"),
        (mine(k={"codec": "block", "order": "reversed"}), "k.order", "order must be one of native, half_split, interleaved, llamacpp"),
        (mine(k={"codec": "block", "window": -1}), "k.window", "window must be a whole number of tokens or layers, 0 or more, got -1"),
        (mine(k={"codec": "block", "window": True}), "k.window", "got True"),
        (mine(k={"codec": "affine", "axis": "channel", "flush": 48}), "k.flush", "flush must be a positive multiple of 32"),
        (mine(k={"codec": "codebook", "bits": 1, "table": "turbo"}), "k.bits", "bits must be one of 2, 3, 4 for table 'turbo', got 1"),
        (mine(k=8), "k", "k and v are a scheme's name or a mapping with 'codec'"),
        (mine(k="turbo33"), "k", "did you mean 'turbo3'?"),
        (mine(v=None), "v", "k and v are a scheme's name or a mapping with 'codec'"),
        (mine(sinks=1.5), "sinks", "sinks must be a whole number of tokens or layers, 0 or more, got 1.5"),
        (mine(name=""), "name", "1 to 80 printable characters"),
        (mine(name="a\nb"), "name", "1 to 80 printable characters"),
        (mine(bypass="all"), "bypass", "bypass must be one of identity, bridge, got 'all'"),
        (mine(protect="q8_0"), "protect", "a rule for layers is a mapping {first: n, last: n, at: [n, …], scheme: name}"),
        (mine(protect={"first": 1}), "protect", "a rule for layers is a mapping"),
        (mine(protect={"first": -1, "scheme": "q8_0"}), "protect.first", "0 or more, got -1"),
        (mine(protect={"first": 1, "scheme": "q8"}), "protect.scheme", "did you mean 'q8_0'?"),
        (mine(protect={"scheme": "q8_0"}), "protect", "a rule for layers names some: first, last or at"),
        (mine(protect={"first": 1, "scheme": mine(protect={"last": 1, "scheme": "q8_0"})}), "protect.scheme", "cannot have protect itself"),
        (mine(layers=[{"at": [1.5], "scheme": "q8_0"}]), "layers.0.at", "at must be a list of layers, the last being -1, got [1.5]"),
        (mine(gqa={"at_least": 6}), "gqa", "gqa is a mapping {at_least: query heads per KV head, scheme: name}"),
        (mine(logits={"form": "grow", "value": 0}), "logits", "logits is a mapping {form: grow or shrink, value: a number above 0}"),
        (mine(k={"codec": "block", "rotation": "hadamar"}), "k.rotation", "rotation must be one of none, hadamard"),
        (mine(k={"codec": "block", "rotation": "hadamard", "rotation_group": 48}), "k.rotation_group", "a power of two, got 48"),
        (mine(v={"codec": "block", "rope": "pre"}), "v.rope", "values are never rotated"),
        ("tq3_1s", "", "'tq3_1s' is no scheme for a KV cache: "),
        ({"scheme": "q8_0", "window": 8}, "window", "'window' cannot be combined with 'scheme'"),
        ({"scheme": "q9_0"}, "scheme", "unknown scheme 'q9_0'"),
        ("q8_0/turbo3/f16", "", "unknown scheme 'q8_0/turbo3/f16'"),
        ("q8_0/turbo9", "", "unknown scheme 'turbo9'"),
    ],
)
def test_a_mistake_is_reported_at_its_path_with_what_is_allowed(data, at, text):
    found = problems(data)
    assert list(found) == [at]
    assert text in found[at]


def test_all_mistakes_are_reported_at_once():
    k = {"codec": "block", "bits": 7, "bit": 4, "window": -3}
    found = problems({"k": k, "v": "turbo33", "sinks": "four", "sink": 4, "protect": {"first": "two", "scheme": "q8"}})
    assert set(found) == {"k.bits", "k.bit", "k.window", "v", "sinks", "sink", "protect.first", "protect.scheme", "name"}


def test_read_raises_with_every_mistake():
    with pytest.raises(ConfigError) as error:
        read(mine(sinks=-1, k={"codec": "block", "bits": 7}))
    assert [text.partition(": ")[0] for text in error.value.problems] == ["k.bits", "sinks"]


def test_paths_continue_those_of_the_document():
    found = []
    parse(mine(sinks=-1), lambda at, text: found.append(at), at=("schemes", 3))
    assert found == [("schemes", 3, "sinks")]


def test_k_of_one_and_v_of_another():
    scheme = preset("q8_0/turbo3")
    assert (scheme.name, scheme.k, scheme.v) == ("q8_0/turbo3", preset("q8_0").k, preset("turbo3").v)
    assert read({"name": "q8_0/turbo3", "k": "q8_0", "v": "turbo3"}) == scheme


def test_a_window_of_the_scheme_is_that_of_each_side_without_its_own():
    scheme = read(mine(k={"codec": "block", "window": 3}, window=9))
    assert (scheme.k.window, scheme.v.window) == (3, 9)
    assert read(mine(k="kivi2", v="kivi2", window=9)).v.window == 128


def test_a_codec_that_packs_units_flushes_units():
    assert read(mine(k={"codec": "affine", "axis": "channel", "group_size": 64})).k.flush == 64
    assert preset("kivi2").k.flush == 128


def test_a_control_of_a_preset():
    scheme = read({"scheme": "turbo3", "bypass": "identity"})
    assert (scheme.name, scheme.label, scheme.k) == ("turbo3", "turbo3[identity]", preset("turbo3").k)


@pytest.mark.parametrize(
    ("first", "last", "protected"),
    [(1, 1, [0, 5]), (2, 0, [0, 1]), (0, 3, [3, 4, 5])],
)
def test_protected_layers_are_counted_from_both_ends(first, last, protected):
    scheme = read(mine(protect={"first": first, "last": last, "scheme": "q8_0"}, bypass="bridge"))
    layers = [scheme.for_layer(index, 6) for index in range(6)]
    assert [index for index, layer in enumerate(layers) if layer.name == "q8_0"] == protected
    assert {layer.bypass for layer in layers} == {"bridge"}


def test_a_scheme_that_protects_every_layer_would_run_in_none():
    scheme = read(mine(protect={"first": 3, "last": 3, "scheme": "q8_0"}))
    with pytest.raises(Unsupported, match="it would run in none"):
        scheme.for_layer(0, 6)


def test_lossless_means_every_codec_in_use():
    assert preset("f32").lossless_in("float32")
    assert not preset("f16").lossless_in("float32")
    assert preset("f16").lossless_in("float16")
    assert not preset("f16/q8_0").lossless_in("float16")
    assert not read(mine(k="f32", v="f32", protect={"first": 1, "scheme": "q8_0"})).lossless_in("float32")
    assert read({"scheme": "q4_0", "bypass": "identity"}).lossless_in("float32")


def test_a_head_dim_is_checked_for_all_codecs_in_use():
    preset("q8_0").check(96)
    with pytest.raises(Unsupported, match="head_dim 80"):
        preset("f16/q8_0").check(80)
    with pytest.raises(Unsupported, match="head_dim 80"):
        read(mine(k="f16", v="f16", protect={"first": 1, "scheme": "q8_0"})).check(80)


def test_equal_definitions_under_different_names():
    one, two = read(mine()), read(mine(name="other"))
    assert one != two
    assert one.definition() == two.definition()
    assert one.definition() != read(mine(sinks=1)).definition()


def test_bits_of_well_known_formats():
    assert preset("q8_0").bits(128) == (8.5, 8.5)
    assert preset("q4_0").bits(64) == (4.5, 4.5)
    assert preset("f16/turbo4").bits(128) == (16, 4.125)
    assert preset("turbo4").bits(64) == (4.25, 4.25)


def test_every_preset_names_its_source_and_family():
    for name in presets():
        scheme = preset(name)
        assert scheme.name == name
        assert scheme.source
        assert scheme.family


def test_an_unknown_codec_or_preset_is_an_error_with_the_likely_meaning():
    with pytest.raises(ConfigError, match="unknown codec 'blocks'; did you mean 'block'"):
        read(mine(k={"codec": "blocks"}))
    with pytest.raises(ConfigError, match="unknown scheme 'kivi'; did you mean 'kivi"):
        preset("kivi")


@pytest.mark.parametrize("t", [0, 1, 5, 100])
def test_the_boundary_of_a_token_wise_side_is_its_own_position(t):
    assert Side(Block()).packed(t) == t + 1


@pytest.mark.parametrize(("t", "k", "v"), [(0, 0, 0), (126, 0, 0), (127, 128, 0), (128, 128, 1), (255, 256, 128), (300, 256, 173)])
def test_the_boundary_of_kivi_is_that_of_its_paper(t, k, v):
    scheme = preset("kivi2")
    assert (scheme.k.packed(t), scheme.v.packed(t)) == (k, v)


def test_rules_for_layers_name_them_from_both_ends_and_the_first_that_holds_wins():
    rules = [{"first": 1, "at": [-2], "scheme": "q4_0"}, {"last": 2, "scheme": "f16"}]
    scheme = read(mine(protect={"at": [2], "scheme": "bf16"}, layers=rules))
    assert [scheme.for_layer(i, 6).name for i in range(6)] == ["q4_0", "mine", "bf16", "mine", "q4_0", "f16"]
    assert [scheme.for_layer(i, 6).role for i in range(6)] == ["instead", "own", "protects", "own", "instead", "instead"]
    assert read(scheme.to_data()) == scheme


def test_a_rule_for_a_layer_that_is_not_there_is_refused():
    with pytest.raises(Unsupported, match="a rule for layer 9, there are 6 that hold K and V"):
        read(mine(layers=[{"at": [9], "scheme": "q4_0"}])).for_layer(0, 6)


def test_the_gqa_rule_holds_from_so_many_query_heads_on():
    scheme = read(mine(gqa={"at_least": 6, "scheme": "q8_0/turbo3"}, logits={"form": "grow", "value": 0.1}))
    assert [scheme.for_layer(0, 2, sharing).name for sharing in (1, 5, 6, 8)] == ["mine", "mine", "q8_0/turbo3", "q8_0/turbo3"]
    assert scheme.for_layer(0, 2, 8).logits == scheme.logits
    assert read(scheme.to_data()) == scheme


def test_a_mixture_keeps_the_rules_that_its_two_schemes_share():
    assert read("qjl/qjl").layers == read("qjl").layers
    found = problems("turbo3_mode1/turbo3")
    assert found == {"": "'turbo3_mode1/turbo3': the two schemes differ in layers; write out a mapping with k and v"}


def test_of_many_names_only_the_nearest_are_told():
    assert problems("turbo33")[""].count(",") == 5
