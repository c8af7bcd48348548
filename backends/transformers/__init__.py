"""Our store inside a Hugging Face model, on CPU or CUDA."""

from __future__ import annotations

from tqbench.core.session import LocalModel, Session


def open_session(model: LocalModel, device: str = "cpu", dtype: str = "float32") -> Session:
    """Load the model and open a session on it."""
    from backends.transformers.session import load

    return load(model, device, dtype)
