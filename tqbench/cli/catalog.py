"""What schemes there are, in tables: families grouped, controls last."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence

from tqbench.cli import describe
from tqbench.core import registry
from tqbench.core.presets import preset, presets
from tqbench.core.scheme import Scheme, Side

COLUMNS = ("scheme", "family", "bits K>", "bits V>", "note")
HEAD_DIMS = (64, 128)  # of the schemes' page
CONTROLS = "controls"
HEAD = """\
# Schemes

Every scheme that comes with tqbench, as `tqbench schemes --markdown` writes them. K and V are given as a suite may write them; `tqbench
schemes show NAME` explains one and draws its bytes. Bits are per packed value at head_dim 64 and 128, with scales and norms; – is a
size that the scheme does not take. What policy keeps in another form is not in them.
"""


def rows(head_dim: int) -> Iterator[tuple[str, ...]]:
    """One row per scheme: presets, and those of installed packages."""
    for scheme in _schemes(presets()):
        bits, reason = describe.bits(scheme, head_dim)
        note = f"unsupported: {reason}" if reason else scheme.note or scheme.source
        yield (scheme.name, scheme.family, *(bits or ("–", "–")), note)


def markdown() -> str:
    """The schemes' page: what comes with tqbench, without what else is installed here."""
    shipped = registry.modules("tqbench.schemes")
    families: dict[str, list[Scheme]] = {}
    for scheme in _schemes(presets()):
        if scheme.family in shipped:
            families.setdefault(scheme.family, []).append(scheme)
    parts = [HEAD, *(_section(family, shipped[family], schemes) for family, schemes in families.items())]
    if registry.refused():
        refused = "".join(f"* `{name}`: {reason}\n" for name, reason in registry.refused().items())
        parts.append(f"## Not here\n\nNames that are met beside these and are no way to store a KV cache.\n\n{refused}")
    return "\n".join(parts)


def _schemes(names: list[str]) -> list[Scheme]:
    """Families in the order of their files, the controls at the end."""
    return sorted(map(preset, names), key=lambda scheme: scheme.family == CONTROLS)


def _section(family: str, module: str, schemes: list[Scheme]) -> str:
    about = (importlib.import_module(module).__doc__ or "").strip()
    sources = {scheme.source for scheme in schemes}
    shared = f"\n\nSource: {sources.pop()}" if len(sources) == 1 else ""
    columns = ("scheme", "K", "V", *(f"bits {head_dim}" for head_dim in HEAD_DIMS), "policy", "note" if shared else "note · source")
    lines = [_line(columns), _line(["---"] * len(columns)), *(_scheme(scheme, "" if shared else scheme.source) for scheme in schemes)]
    return f"## {family}\n\n{about}{shared}\n\n" + "\n".join(lines) + "\n"


def _scheme(scheme: Scheme, source: str) -> str:
    k, v = (f"`{_side(side)}`" for side in (scheme.k, scheme.v))
    bits = [_bits(scheme, head_dim) for head_dim in HEAD_DIMS]
    policy = "; ".join(describe.rules(scheme))
    return _line((f"`{scheme.name}`", k, "as K" if v == k else v, *bits, policy, " · ".join(filter(None, (scheme.note, source)))))


def _side(side: Side) -> str:
    """The side as YAML on one line, without its braces."""
    return describe.yaml_of(describe.side_data(side), flow=True).strip("{}\n")


def _bits(scheme: Scheme, head_dim: int) -> str:
    bits, _ = describe.bits(scheme, head_dim)
    return "–" if bits is None else " / ".join(dict.fromkeys(bits))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') or '–' for cell in cells)} |"
