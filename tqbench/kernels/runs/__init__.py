"""Codec `kvtc_paper` on a device, from vectors to packed runs of principal components and back. `_triton` is the only form beside the
codec's own mathematics; `encode` and `decode` have it as theirs."""
