"""What codecs are built from: rotations, codebooks, bit packing, and the wrappers for channel order and controls."""
