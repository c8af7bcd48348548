"""Named presets, one file per family: pure data that composes codecs, each with its source."""
