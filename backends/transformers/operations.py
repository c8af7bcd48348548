"""The operations of a forward pass as stages: hooks on the modules of a Llama-like model, by the names that transformers gives them.

A module is charged with what happens in itself and in no module inside it: what is left of a decoder layer is its residual additions, of
its attention the rotary embedding (its tables are a module of their own) and the reshaping around it, of its MLP the activation and
product. The scores' softmax is a part of `attend`, where torch's attention fuses it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tqbench.core.errors import Unsupported
from tqbench.measure.stages import stage

NAMES = {
    "embed_tokens": "embed",
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "qkv_proj"), "qkv"),
    "o_proj": "out",
    **dict.fromkeys(("gate_proj", "up_proj", "down_proj", "gate_up_proj"), "ffn"),
    "mlp": "activation",
    "rotary_emb": "rope",
    "self_attn": "rope",
    "lm_head": "lm_head",
}
KINDS = {"RMSNorm": "norm", "LayerNorm": "norm", "DecoderLayer": "residual"}


@contextlib.contextmanager
def marked(model: Any) -> Iterator[None]:
    """While open, each operation of the model is a stage."""
    found = {module: name for path, module in model.named_modules() if (name := _operation(path, module))}
    if missing := sorted({*NAMES.values(), *KINDS.values()} - set(found.values())):
        raise Unsupported(f"a breakdown needs a Llama-like model; in this one no module is known as {', '.join(missing)}")
    handles = [handle for module, name in found.items() for handle in _hooked(module, name)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _operation(path: str, module: Any) -> str | None:
    kind = type(module).__name__
    by_kind = next((name for end, name in KINDS.items() if kind.endswith(end)), None)
    return by_kind or NAMES.get(path.rpartition(".")[2])


def _hooked(module: Any, name: str) -> Iterator[Any]:
    """The hooks that open and close the stage of a module, also where it raises."""
    opened: list[Any] = []

    def before(*_: Any) -> None:
        opened.append(stage(name))
        opened[-1].__enter__()

    def after(*_: Any) -> None:
        opened.pop().__exit__(None, None, None)

    yield module.register_forward_pre_hook(before)
    yield module.register_forward_hook(after, always_call=True)
