"""From measured schemes to mixes of them: what each keeps and costs in each layer and side, the mix that a limit affords, and its YAML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from tqbench.core.errors import ConfigError, TqbenchError
from tqbench.core.presets import RULES, preset, presets, read
from tqbench.core.record import Record
from tqbench.core.scheme import Layers, Scheme, Side
from tqbench.core.state import SIDES
from tqbench.metrics.mix import Choice, cheapest

EXACT_BYTES = 2  # of an exact value, whatever the model's dtype: as everywhere in figures
Place = tuple[int, str]  # the position among the layers that hold K and V, and the side


def held(record: Record) -> dict[Place, int]:
    """Bytes that the store keeps in each layer and side at the end of a window, counted over its arrays, exact values at 16 bits."""
    width = record.model["kv_heads"] * record.model["head_dim"]
    order = {layer: at for at, layer in enumerate(sorted({e["layer"] for e in record.evidence}))}
    return {
        (order[e["layer"]], e["side"]): e["bytes_payload"] + e["bytes_metadata"] + EXACT_BYTES * width * (e["tokens"] - e["tokens_packed"])
        for e in record.evidence
    }


def per_token(record: Record) -> float:
    """All of it, per token that the store holds."""
    return float(sum(held(record).values()) / max(e["tokens"] for e in record.evidence))


def unmixable(scheme: Scheme) -> str | None:
    """Why a scheme cannot run in some layers beside others; it is then compared with as it is."""
    rules = [rule for rule in ("protect", "layers", "gqa", "logits", "bypass") if getattr(scheme, rule)]
    if rules:
        return f"it has {', '.join(rules)} of its own"
    if scheme.peer:
        return "it is another library's cache"
    if any(scheme.across_layers(name) for name in SIDES):
        return "it packs all layers together"
    return None


@dataclass(frozen=True)
class Palette:
    """The schemes that a mix is made of, and what each costs in each layer and side."""

    schemes: Mapping[str, Scheme]
    bytes: Mapping[str, Mapping[Place, int]]
    kld: Mapping[str, Mapping[Place, float]]

    @staticmethod
    def of(found: Sequence[tuple[Scheme, Record]], reference: Record) -> Palette:
        """From the records of the schemes, of which the reference's has all layers probed: others without probes of their own cost in a
        layer what the reference costs there for each unit of codec error, times their own error, scaled to the KLD of their whole side.
        """
        return Palette(
            {scheme.name: scheme for scheme, _ in found},
            {scheme.name: held(record) for scheme, record in found},
            {scheme.name: _probed(record) if record.layers else _shared(record, reference) for scheme, record in found},
        )

    def choices(self) -> list[list[Choice]]:
        """What each layer may run: keys as in one scheme and values as in another, where both keep as many first tokens exact."""
        layers = sorted({at for costs in self.bytes.values() for at, _ in costs})
        pairs = [(k, v) for k in self.schemes for v in self.schemes if self.schemes[k].sinks == self.schemes[v].sinks]
        return [
            [
                Choice(
                    k,
                    v,
                    self.bytes[k][at, "k"] + self.bytes[v][at, "v"],
                    self.kld[k][at, "k"] + self.kld[v][at, "v"],
                )
                for k, v in pairs
            ]
            for at in layers
        ]

    def mix(self, limit: float) -> tuple[Scheme, float] | None:
        """The mix of the fewest bytes whose damage should add up to at most the limit, and to what it does; None if there is none."""
        picks = cheapest(self.choices(), limit)
        return None if picks is None else (self._scheme([(one.k, one.v) for one in picks]), sum(one.kld for one in picks))

    def _scheme(self, pairs: Sequence[tuple[str, str]]) -> Scheme:
        """The commonest pair everywhere but where a rule says otherwise."""
        (base, _), *others = Counter(pairs).most_common()
        rules = tuple(Layers(self._pair(*pair), at=tuple(at for at, own in enumerate(pairs) if own == pair)) for pair, _ in sorted(others))
        whole = self._pair(*base)
        return Scheme("tuned", whole.k, whole.v, whole.sinks, layers=rules)

    def _pair(self, k: str, v: str) -> Scheme:
        keys, values = self.schemes[k], self.schemes[v]
        return keys if k == v else Scheme(f"{k}/{v}", keys.k, values.v, keys.sinks)


def _probed(record: Record) -> dict[Place, float]:
    """What its own probes said."""
    order = {layer: at for at, layer in enumerate(sorted({row["layer"] for row in record.layers}))}
    return {(order[row["layer"]], row["side"]): max(0.0, row["kld"]) for row in record.layers}


def _shared(record: Record, reference: Record) -> dict[Place, float]:
    """The KLD of each whole side, shared out among the layers."""
    costs, theirs, mine = _probed(reference), _errors(reference), _errors(record)
    raw = {place: costs[place] * mine[place] / theirs[place] if theirs[place] else 0.0 for place in costs}
    found: dict[Place, float] = {}
    for side in SIDES:
        places = [place for place in raw if place[1] == side]
        total, whole = sum(raw[place] for place in places), max(0.0, record.metrics[f"kld_{side}"].value)
        found |= {place: whole * raw[place] / total if total else whole / len(places) for place in places}
    return found


def _errors(record: Record) -> dict[Place, float]:
    order = {layer: at for at, layer in enumerate(sorted({e["layer"] for e in record.evidence}))}
    return {(order[e["layer"]], e["side"]): e["error"] or 0.0 for e in record.evidence}


def to_yaml(scheme: Scheme, indent: str = "  ") -> str:
    """The scheme as an item of a suite's list, by names where these mean the same; read back, it is the same scheme."""
    for data in (_by_name(scheme), scheme.to_data()):
        lines = [f"{key}: {_flow(value)}" for key, value in data.items() if key != "layers"]
        lines += ["layers:", *(f"  - {_flow(rule)}" for rule in data["layers"])] if "layers" in data else []
        text = "\n".join(f"{indent}{'- ' if i == 0 else '  '}{line}" for i, line in enumerate(lines))
        if _means(text, scheme):
            return text
    raise TqbenchError(f"scheme {scheme.name!r} cannot be written as YAML that reads back to the same scheme")


def _means(text: str, scheme: Scheme) -> bool:
    try:
        return read(yaml.safe_load(text)[0]).definition() == scheme.definition()
    except ConfigError:
        return False


def _by_name(scheme: Scheme) -> dict[str, Any]:
    """With names of presets for sides and for what stands in, where there are any."""
    data = scheme.to_data()
    sides = {name: _preset_of(getattr(scheme, name), name) or data[name] for name in SIDES}
    rules = [{"at": list(rule.at), "scheme": rule.scheme.name} for rule in scheme.layers]
    return data | sides | ({"layers": rules} if rules else {})


def _preset_of(side: Side, name: str) -> str | None:
    """The first preset that has the same side and nothing that no side can have."""
    known = (preset(one) for one in presets())
    return next((one.name for one in known if getattr(one, name) == side and not any(getattr(one, rule) for rule in RULES)), None)


def _flow(value: Any) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True, width=float("inf"), sort_keys=False)).removesuffix("...\n").strip()
