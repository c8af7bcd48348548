"""llama-perplexity's log: a perplexity with its running values, or the KL divergence against another run's logits.

The log is refused where it contradicts itself: chunks that are announced and not there, a result that is not the last running value, a
ratio that is not that of its perplexities.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import PureWindowsPath  # takes either slash

from tqbench.core.errors import ConfigError
from tqbench.importers.row import Fact, Figure, Row, facts, figure

TOOL = "llama-perplexity"
_N = r"([-+]?(?:\d+(?:\.\d+)?(?:e[-+]?\d+)?|nan|inf))"
_PREFIX = r"^(?:[\d.]+ )?(?:[IWED] )?"  # --log-timestamps, --log-prefix
_BEGINS = re.compile(r"(?:calculating perplexity|computing) over (\d{1,9}) chunks, (?:n_ctx=(\d{1,9}), )?batch_size=")
_STRIDED = re.compile(r"adjusting context size from (\d{1,9}) to (\d{1,9})")
_CALCULATION = re.compile(r"have \d+ tokens\. Calculation chunk = (\d{1,9})")
_RUNNING = re.compile(rf"\[(\d{{1,9}})\]{_N},")
_TABULAR = re.compile(rf"{_PREFIX}\s*(\d{{1,9}})  {_N}(?:  {_N}  {_N})?\s*$")
_FINAL = re.compile(rf"Final estimate: PPL = {_N} \+/- {_N}")
_CHUNK = re.compile(rf"{_PREFIX}\s*(\d{{1,9}})\s+{_N} ±\s*{_N}\s+{_N} ±")
_STATISTIC = re.compile(rf"{_PREFIX}(.{{1,40}}?)\s*:\s*{_N}(?: ±\s*{_N})?\s*%?\s*$")
_FAILED = re.compile(r"failed to decode|failed reading log-probs|Unexpected negative standard deviation|you need at least \d+ tokens")
_OTHER = re.compile(r"Final Winogrande score|hellaswag score over|TruthfulQA score over")
_FACTS = {
    "version": re.compile(r"build(?:: | = )(\d+ \([0-9a-f]+\))|build: ([0-9a-f]{7,40} \(\d+\))"),
    "model": re.compile(r"loaded meta data with \d+ key-value pairs and \d+ tensors from (.+?) \(version "),
    "cache": re.compile(r"KV (?:self )?size.*?K \(([\w.]+)\):.*?V \(([\w.]+)\):|size =.*?cells.*?K \(([\w.]+)\):.*?V \(([\w.]+)\):"),
    "K rotated": re.compile(r"attn_rot_k = ([01])"),
    "V rotated": re.compile(r"attn_rot_v = ([01])"),
    "bos": re.compile(r"tokenizer\.ggml\.add_bos_token\s+bool\s*= (true|false)"),
}
RECIPE = "windows of the context side by side, the second half of each scored"
STRIDED = "windows of the context, each a stride further, the tokens of the stride scored"
DIVERGENCE = f"{RECIPE}; KL divergence from logits that another run wrote to a file, rounded to 16 bits"
CAVEAT = (
    "the tool does not say which tokens it scored, and keeps no score per token. To measure the same here, use recipe `llamacpp` "
    "(suites/llamacpp.yaml) on the same text and model"
)
STATISTICS = {  # what the log calls it: our name and unit
    "Mean PPL(Q)": ("ppl", 1.0),
    "Mean PPL(base)": ("base_ppl", 1.0),
    "Mean ln(PPL(Q)/PPL(base))": ("ln_ratio", 1.0),
    "Mean PPL(Q)-PPL(base)": ("dppl", 1.0),
    "Mean    KLD": ("kld", 1.0),
    "Median  KLD": ("kld_median", 1.0),
    "90.0%   KLD": ("kld_p90", 1.0),
    "99.0%   KLD": ("kld_p99", 1.0),
    "99.9%   KLD": ("kld_p999", 1.0),
    "Maximum KLD": ("kld_max", 1.0),
    "RMS Δp": ("rms_dp", 0.01),
    "Same top p": ("top1", 0.01),
}
LONGEST = 4096  # characters of a line that says a fact
BOOLS = {"true": True, "false": False, "1": True, "0": False}
UNSAID = {
    "version": "the log does not say it; newer llama.cpp prints no build",
    "model": "the log does not say it; llama.cpp prints the file with -lv 4",
    "cache_k": "the log does not say it; llama.cpp prints the cache types with -lv 4",
    "cache_v": "the log does not say it; llama.cpp prints the cache types with -lv 4",
    "corpus": "llama-perplexity does not print the name of the text",
    "context": "the log does not say it; it is printed on standard error",
    "chunks": "the log does not say it; it is printed on standard error",
    "stride": "windows lie side by side",
    "bos": "the log does not say it; where the model wants one, the tool puts it in the place of each window's first token",
}


@dataclass
class _Run:
    """What a log has said of one run so far."""

    known: dict[str, Fact] = field(default_factory=dict)
    begun: int | None = None  # the line that announces it
    running: list[float] = field(default_factory=list)
    statistics: dict[str, tuple[float, float | None]] = field(default_factory=dict)
    divergence: bool = False
    strided: bool = False


def begins(text: str) -> bool:
    """Whether a text begins with running values: standard output alone, which looks like a list."""
    return _RUNNING.match(text.lstrip()) is not None


def is_log(text: str) -> bool:
    """Whether this looks like a log of perplexities."""
    return (
        begins(text)
        or any(pattern.search(text) for pattern in (_BEGINS, _FINAL, _OTHER))
        or "====== KL divergence statistics ======" in text
    )


def read(name: str, text: str) -> list[Row]:
    """The rows of a log, one for each run in it."""
    rows, run, last = [], _Run(), 0
    for last, line in enumerate(text.split("\n"), 1):
        row = _Reader(name, last, line).take(run)
        if row:
            rows.append(row)
            run = _Run()
    if run.strided and run.running:
        rows.append(_Reader(name, last, "").finish_strided(run))
    elif run.begun or run.running or run.statistics:
        raise ConfigError(f"{name}:{last}: the log ends before the result: {_lacks(run)}")
    if not rows:
        other = _OTHER.search(text)
        what = "a score of tasks, and only perplexity and KL divergence are read" if other else "no perplexity"
        raise ConfigError(f"{name}:{text.count(chr(10), 0, other.start()) + 1 if other else 1}: the log holds {what}")
    return rows


def _lacks(run: _Run) -> str:
    if run.divergence:
        missing = [title for title in STATISTICS if title not in run.statistics]
        return f"no {missing[0]!r}" if missing else "nothing after its statistics"
    return "no `Final estimate`, which llama-perplexity prints on standard error (keep both: `> log.txt 2>&1`)"


@dataclass(frozen=True)
class _Reader:
    """One line of a log, and where it stands."""

    name: str
    number: int
    line: str

    def take(self, run: _Run) -> Row | None:
        """Note what the line says; the row, if it ends a run."""
        if _FAILED.search(self.line):
            self._wrong("llama-perplexity says here that it failed, whatever it prints afterwards or exits with")
        self._facts(run)
        if not run.divergence and (found := _FINAL.search(self.line)):
            return self._perplexity(run, float(found[1]), float(found[2]))
        if run.divergence or "====== Perplexity statistics ======" in self.line:
            return self._divergence(run)
        self._running(run)
        return None

    def _facts(self, run: _Run) -> None:
        for key, pattern in _FACTS.items():
            if found := pattern.search(self.line[:LONGEST]):
                values = [value for value in found.groups() if value]
                if key == "cache":
                    self._caches(run, *values)
                else:
                    run.known[key] = BOOLS.get(values[0], PureWindowsPath(values[0]).name)
        if found := _STRIDED.search(self.line):
            run.known["stride"] = 2 * (int(found[2]) - int(found[1]))
        if found := _CALCULATION.search(self.line):
            run.strided, run.known["context"] = True, int(found[1])
        if found := _BEGINS.search(self.line):
            if run.begun:
                self._wrong(f"another run begins before the one of line {run.begun} has a result")
            run.begun, run.known["chunks"] = self.number, int(found[1])
            run.divergence = "computing over" in self.line and not run.strided
            if found[2] and not run.strided:
                run.known["context"] = int(found[2])

    def _caches(self, run: _Run, k: str, v: str) -> None:
        """Models with sliding windows have a cache of each kind, which may differ."""
        for key, kind in (("cache_k", k), ("cache_v", v)):
            before = str(run.known.get(key, kind))
            run.known[key] = before if kind in before.split(", ") else f"{before}, {kind}"

    def _running(self, run: _Run) -> None:
        """Running values: of every chunk, in order, in either form that the tool prints."""
        if (run.begun is None and not begins(self.line)) or self.number == run.begun:
            return
        for found in _RUNNING.finditer(self.line):
            if int(found[1]) != len(run.running) + 1:
                self._wrong(f"chunk {found[1]} follows chunk {len(run.running)}")
            run.running.append(float(found[2]))
        if row := _TABULAR.match(self.line):
            run.running.append(float(row[2]))

    def _perplexity(self, run: _Run, ppl: float, error: float) -> Row:
        chunks = run.known.get("chunks")
        if chunks is not None and len(run.running) not in (0, chunks):
            self._wrong(f"the result of {chunks} chunks, of which {len(run.running)} are there")
        if run.running and not _same(run.running[-1], ppl, 1e-4):
            self._wrong(f"the result {ppl} is not the value after the last chunk, {run.running[-1]}")
        return self._row(run, RECIPE, {"ppl": figure(ppl, error)})

    def finish_strided(self, run: _Run) -> Row:
        """Strided runs print no result but their last running value."""
        if len(run.running) != run.known.get("chunks"):
            self._wrong(f"the log ends after {len(run.running)} of {run.known.get('chunks')} chunks")
        return self._row(run, STRIDED, {"ppl": figure(run.running[-1])})

    def _divergence(self, run: _Run) -> Row | None:
        run.divergence = True
        if found := _CHUNK.match(self.line):
            if int(found[1]) != len(run.running) + 1:
                self._wrong(f"chunk {found[1]} follows chunk {len(run.running)}")
            run.running.append(float(found[2]))
        elif (said := _STATISTIC.match(self.line)) and said[1] in STATISTICS:
            if said[1] in run.statistics:
                self._wrong(f"{said[1]!r} stands twice in one run")
            run.statistics[said[1]] = (float(said[2]), float(said[3]) if said[3] else None)
        return self._statistics(run) if len(run.statistics) == len(STATISTICS) else None

    def _statistics(self, run: _Run) -> Row:
        """All statistics are there: do they fit each other, and the table of chunks?"""
        ppl, base, ratio = (run.statistics[title][0] for title in ("Mean PPL(Q)", "Mean PPL(base)", "Mean ln(PPL(Q)/PPL(base))"))
        if run.running:
            run.known.setdefault("chunks", len(run.running))
        if run.known.get("chunks", 0) != len(run.running):
            self._wrong(f"the statistics of {run.known['chunks']} chunks, of which {len(run.running)} are there")
        if run.running and not _same(run.running[-1], ppl, 1e-4):
            self._wrong(f"the perplexity {ppl} is not the value after the last chunk, {run.running[-1]}")
        if min(ppl, base) > 0 and not _same(math.log(ppl) - math.log(base), ratio, 2e-6 + 1e-6 / min(ppl, base)):
            self._wrong(f"the log ratio {ratio} is not that of the perplexities {ppl} and {base}")
        figures = {key: figure(*run.statistics[title], scale=scale) for title, (key, scale) in STATISTICS.items()}
        return self._row(run, DIVERGENCE, figures)

    def _row(self, run: _Run, recipe: str, figures: dict[str, Figure]) -> Row:
        known, unknown = facts(run.known, UNSAID)
        label = " / ".join(str(known.get(key, "?")) for key in ("cache_k", "cache_v"))
        return Row(TOOL, recipe, label, f"{self.name}:{self.number}", known, unknown, figures, CAVEAT)

    def _wrong(self, what: str) -> None:
        raise ConfigError(f"{self.name}:{self.number}: {what}")


def _same(x: float, y: float, within: float) -> bool:
    """Equal but for how they are printed; numbers that are none are equal, too."""
    return abs(x - y) <= within or (not math.isfinite(x) and not math.isfinite(y))
