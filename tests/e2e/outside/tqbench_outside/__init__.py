"""What a researcher ships: two codecs, one file of mathematics each, and the presets that name them."""

PRESETS = {
    "ternary": {"k": {"codec": "ternary"}, "v": {"codec": "ternary"}, "source": "tests/e2e", "note": "honest"},
    "liar": {"k": {"codec": "liar"}, "v": {"codec": "liar"}, "source": "tests/e2e", "note": "declares 4 bits and does nothing"},
}
