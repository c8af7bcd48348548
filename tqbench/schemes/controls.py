"""Controls: schemes whose result is known beforehand. `f16` twice is the A/A control; `bypass` turns any scheme into a zero control."""

from __future__ import annotations

PRESETS = {
    "destructive": {
        "k": {"codec": "magnitude"},
        "v": {"codec": "magnitude"},
        "source": "tqbench",
        "note": "forgets the direction of every vector: must ruin the model, or the instrument is blind",
    },
}
