"""One file per way to store a K or V tensor; the file's name is the codec's name. `blocks/` holds what they share."""
