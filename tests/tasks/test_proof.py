"""What ran against what the scheme declares, on real stores: honest ones are not suspected, and a side that runs the other's codec is."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from backends.transformers import tiny
from backends.transformers.session import TransformersSession
from tqbench.cache.store import Store
from tqbench.core.evidence import SideEvidence, coverage_sides
from tqbench.core.presets import preset, read
from tqbench.core.scheme import Scheme
from tqbench.core.session import Terms, TokenScores
from tqbench.schemes.kvtc import PRESETS
from tqbench.tasks._proof import Witness, _declared

IDS = np.random.default_rng(0).integers(0, 256, 288)  # KIVI and its like flush after 128; kvtc_lite packs its first section after 260


@pytest.fixture(scope="module")
def session() -> Any:
    return TransformersSession(tiny.llama(), None, "tiny")


def run(session: Any, scheme: Scheme) -> list[SideEvidence]:
    calibration = session.calibrate([IDS[:64]]) if scheme.calibrated else None
    cache = session.new_cache(scheme, Terms(calibration=calibration))
    session.forward(IDS, cache)
    found: list[SideEvidence] = cache.evidence()
    return found


NAMES = (
    *("f16", "q8_0", "q4_0_rot", "q8_0/turbo3", "turbo4", "turbo3_pad128", "kivi2", "turboquant_prod3", "mlx_vlm_2.5_split", "mxfp4"),
    *("nvfp4_static", "mlx4_g64", "fp8_e4m3_static", "kvquant3", "polarquant_han", "isoquant3", "iq4_nl", "sanctum3", "destructive"),
)
SCHEMES = [preset(name) for name in NAMES]
SCHEMES.append(read({"name": "guarded", "k": "turbo4", "v": "q4_0", "sinks": 4, "protect": {"first": 1, "scheme": "q8_0"}}))
SCHEMES += [preset(name) for name in PRESETS]
SCHEMES += [dataclasses.replace(preset("kvtc_paper_8x"), bypass=bypass) for bypass in ("identity", "bridge")]
SCHEMES += [dataclasses.replace(preset("q8_0/turbo3"), bypass=bypass) for bypass in ("identity", "bridge")]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)
def test_an_honest_store_runs_what_the_scheme_declares(session: Any, scheme: Scheme) -> None:
    evidence = run(session, scheme)
    assert _declared(evidence, scheme, session.info) == []
    assert all(e.runs["codec"] == e.codec for e in evidence)
    json.dumps([dataclasses.asdict(e) for e in evidence], allow_nan=False)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("q8_0/turbo3", "v: block ran, the scheme has codebook bits=3"),
        ("q8_0/q4_0", "v: block ran, the scheme has block bits=4"),
        ("q4_0/q8_0", "v: block bits=4 ran, the scheme has block there"),
    ],
)
def test_a_side_that_runs_the_codec_of_the_other_is_told(session: Any, monkeypatch: pytest.MonkeyPatch, name: str, words: str) -> None:
    honest = Store.__init__

    def lies(self: Store, scheme: Scheme, *rest: Any) -> None:
        honest(self, dataclasses.replace(scheme, v=scheme.k), *rest)

    monkeypatch.setattr(Store, "__init__", lies)
    found = _declared(run(session, preset(name)), preset(name), session.info)
    assert len(found) >= 2
    assert all(" v: " in text for text in found)
    assert words in found[0]


def test_coverage_of_each_side_is_of_all_texts(session: Any) -> None:
    """Texts shorter than what KIVI keeps exact have no packed V, which the evidence, of the longest, does not show."""
    witness = Witness(preset("kivi2"), session.info)
    windows = []
    for ids in (IDS[:150], IDS[:150], IDS):
        cache = session.new_cache(witness.scheme, Terms())
        for token in range(0, len(ids), 10):
            session.forward(ids[token : token + 10], cache)
        windows.append(cache.evidence())
        witness.see(windows[-1])
    lost = np.array([0.1, 0.2])
    proof = witness.prove(TokenScores(lost, 2 * lost, lost, np.zeros(2, np.int64)))
    for side in "kv":
        own = [e for window in windows for e in window if e.side == side]
        assert proof["coverage_sides"][side] == sum(e.attended_packed for e in own) / sum(e.attended for e in own)
    alone = coverage_sides(windows[-1])
    assert 0 < proof["coverage_sides"]["v"] < alone["v"] < alone["k"]
    assert proof["coverage"] == pytest.approx(sum(proof["coverage_sides"].values()) / 2)
