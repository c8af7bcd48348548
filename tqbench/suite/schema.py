"""What a suite may say: every key with its type, its default, and in words what it must be. Unknown keys are refused."""

from __future__ import annotations

import re
from dataclasses import dataclass as plain_dataclass
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidatorFunctionWrapHandler, WrapValidator
from pydantic.dataclasses import dataclass

from tqbench.core.errors import unknown
from tqbench.core.gate import Gate, matches
from tqbench.core.scheme import Scheme
from tqbench.corpora.recipes import RECIPES

K = 1024  # `8k` is 8192
MOST = 1 << 24  # tokens: more than any model has positions

# fmt: off
Metric = Literal[
    "ppl", "dppl", "ln_ratio", "kld", "kld_p99", "kld_worst_decile", "kld_max", "rms_dp", "top1", "top5",
    "decode_tps", "decode_ms_p50", "decode_ms_p90", "decode_ms_p99", "decode_ratio", "captured_tps", "captured_ratio",
    "prefill_tps", "prefill_ratio", "ttft_ms", "kv_bytes_per_token", "tokens_per_gib",
    "stored_ratio", "entropy_gain", "save_ms", "load_ms", "ttft_load_ms", "ttft_gain", "cos_k_min", "cos_v_min",
    "needle_score", "needle_kept", "needle_first", "needle_nll", "needle_dnll", "needle_kld",
    "survival", "forced_top1", "forced_kld", "forced_dnll", "eval_score", "eval_delta", "eval_same", "eval_active",
]
# fmt: on


def _one_or_many(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


def _count(value: Any) -> Any:
    """`8k` and `"512"` as numbers; anything else is left for the type to refuse."""
    if isinstance(value, str) and (found := re.fullmatch(r"([0-9]{1,9})(k?)", value.strip().lower())):
        return int(found[1]) * (K if found[2] else 1)
    return value


class UntilDecided(int):
    """At most so many tokens: a scheme's windows are scored until its gates are decided."""


def _tokens(value: Any, whole: ValidatorFunctionWrapHandler) -> int:
    """A number of tokens, or `until decided, at most 128k`."""
    if isinstance(value, str) and (found := re.fullmatch(r"until decided, at most (.+)", value.strip())):
        return UntilDecided(whole(found[1]))
    return int(whole(value))


def _recipe(value: Any) -> Any:
    if not isinstance(value, str) or value not in RECIPES:
        raise ValueError(unknown("recipe", str(value), RECIPES))
    return value


def _corpus(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _list(what: str) -> Any:
    return Field(default_factory=list, min_length=1, description=f"a list of at least one {what}")


Count = Annotated[int, Field(ge=0, le=MOST)] | Annotated[str, Field(pattern="^[0-9]{1,9}[kK]?$")]  # what an editor lets one write
Until = Annotated[str, Field(pattern="^until decided, at most [0-9]{1,9}[kK]?$")]
Word = Annotated[str, Field(min_length=1, max_length=1000, description="a name")]
Words = Annotated[
    tuple[Word, ...],
    BeforeValidator(_one_or_many, json_schema_input_type=Word | list[Word]),
    Field(min_length=1, description="a name or a list of names"),
]
AnyWords = Annotated[tuple[Word, ...], BeforeValidator(_one_or_many, json_schema_input_type=Word | list[Word])]
Device = Annotated[str, Field(pattern=r"^(cpu|mps|gpu|cuda(:[0-9]{1,3})?)$", description="cpu, cuda, cuda:1, mps, or gpu with MLX")]
Devices = Annotated[
    tuple[Device, ...],
    BeforeValidator(_one_or_many, json_schema_input_type=Device | list[Device]),
    Field(min_length=1, description="a device or a list of them: cpu, cuda, cuda:1, mps, or gpu with MLX"),
]
Whole = Annotated[int, BeforeValidator(_count, json_schema_input_type=Count), Field(strict=True, ge=0, le=MOST)]
Lengths = Annotated[
    tuple[Annotated[Whole, Field(ge=16)], ...],
    BeforeValidator(_one_or_many, json_schema_input_type=Count | list[Count]),
    Field(min_length=1, description=f"a whole number of tokens from 16 to {MOST}, or a list of them; 8k is {8 * K}"),
]
Depths = Annotated[
    tuple[Whole, ...],
    BeforeValidator(_one_or_many, json_schema_input_type=Count | list[Count]),
    Field(min_length=1, description=f"a whole number of tokens from 0 to {MOST}, or a list of them; 8k is {8 * K}"),
]
Places = Annotated[
    tuple[Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)], ...],
    BeforeValidator(_one_or_many, json_schema_input_type=float | list[float]),
    Field(min_length=1, max_length=26, description="a number from 0 (the beginning) to 1 (the end), or a list of at most 26 of them"),
]
Seed = Annotated[int, Field(strict=True, ge=0, lt=1 << 32, description="a whole number, 0 or more")]
SomeTokens = Annotated[Whole, Field(ge=1, description="a whole number of tokens, 1 or more")]
Repetitions = Annotated[int, Field(strict=True, ge=1, le=1000, description="a whole number from 1 to 1000")]
AtLeastOne = Annotated[Annotated[Whole, Field(ge=1)] | None, Field(description="a whole number of tokens, 1 or more")]
Corpus = Annotated[
    dict[str, Any],
    BeforeValidator(_corpus, json_schema_input_type=str | dict[str, Any]),
    Field(description="a name or {name: …, path: …}"),
]
STRICT: Any = {"extra": "forbid"}


@dataclass(frozen=True, config=STRICT)
class Settings:
    """The top of a suite. What is in its lists is checked item by item, so that one mistake does not hide another."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$", description="a name of at most 64 of a-z 0-9 _ -")] = ""
    model: Words = ()
    backend: Words = ("transformers",)
    device: Devices = ("cpu",)
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    corpus: Corpus = Field(default_factory=dict)
    calibration: Annotated[dict[str, Any], Field(description="a mapping {corpus: …, tokens: …, seed: …}")] = Field(default_factory=dict)
    kernel: Word = "auto"
    timeout: Annotated[float, Field(gt=0, allow_inf_nan=False, description="a number of seconds per cell, above 0")] = 3600.0
    schemes: list[Any] = _list("scheme")
    tasks: list[Any] = _list("task, `- perplexity: {…}`")
    gates: list[Any] = Field(default_factory=list, description="a list")
    trust_remote_code: Annotated[bool, Field(description="true or false")] = False
    priority: Annotated[AnyWords, Field(description="a name or pattern as for -k, or a list of them, the most wanted first")] = ()


@dataclass(frozen=True, config=STRICT)
class Perplexity:
    """The task `perplexity`: a recipe, and how much text."""

    recipe: Annotated[str, BeforeValidator(_recipe)] = "stream"
    context: Lengths = (512,)
    tokens: Annotated[
        Annotated[Whole, Field(ge=1)],
        WrapValidator(_tokens, json_schema_input_type=Count | Until),
        Field(description=f"a whole number of tokens from 1 to {MOST} (8k is {8 * K}), or `until decided, at most 128k`"),
    ] = 4096
    warmup: Annotated[Whole, Field(description="a whole number of tokens, 0 or more")] = 0
    stride: AtLeastOne = None  # half a window
    protocol: Literal["strict", "deploy"] = "strict"
    chunk: AtLeastOne = None
    skip: AtLeastOne = None  # tokens of the text before the first window

    def params(self, context: int) -> dict[str, Any]:
        """What a cell carries, fully resolved."""
        stride = {"stride": self.stride or context // 2} if "stride" in RECIPES[self.recipe].keys else {}
        return {
            "recipe": self.recipe,
            "context": context,
            "tokens": int(self.tokens),
            **({"until": "decided"} if isinstance(self.tokens, UntilDecided) else {}),
            "warmup": self.warmup,
            **stride,
            "protocol": self.protocol,
            "chunk": self.chunk or self._chunk(context),
            **({"skip": self.skip} if self.skip else {}),
        }

    def _chunk(self, context: int) -> int:
        """In `deploy` the first chunk of a window is the exact prefill, so something must be left to attend to what was packed after it."""
        return min(512, context if self.protocol == "strict" else context // 4)


@dataclass(frozen=True, config=STRICT)
class Steps:
    """Tasks that time decoding steps: how deep, how many tokens there, how often."""

    depth: Depths = (512,)
    new: SomeTokens = 128
    repetitions: Repetitions = 3
    protocol: Literal["strict", "deploy"] = "strict"

    @property
    def context(self) -> tuple[int, ...]:
        """The depths: how many tokens lie before the first that is decoded."""
        return self.depth

    def params(self, context: int) -> dict[str, Any]:
        """What a cell carries, fully resolved."""
        return {"context": context, "new": self.new, "repetitions": self.repetitions, "protocol": self.protocol}


@dataclass(frozen=True, config=STRICT)
class Decode(Steps):
    """The task `decode`: how deep, how many tokens there, how often."""


@dataclass(frozen=True, config=STRICT)
class Prefill:
    """The task `prefill`: how much text, in what chunks, how often."""

    context: Lengths = (512,)
    chunk: AtLeastOne = None
    repetitions: Repetitions = 3
    protocol: Literal["strict", "deploy"] = "strict"

    def params(self, context: int) -> dict[str, Any]:
        """What a cell carries, fully resolved."""
        chunk = min(self.chunk or 512, context)
        return {"context": context, "chunk": chunk, "repetitions": self.repetitions, "protocol": self.protocol}


@dataclass(frozen=True, config=STRICT)
class Memory:
    """The task `memory`: at what depth."""

    context: Lengths = (512,)
    protocol: Literal["strict", "deploy"] = "strict"

    def params(self, context: int) -> dict[str, Any]:
        """What a cell carries, fully resolved."""
        return {"context": context, "protocol": self.protocol}


@dataclass(frozen=True, config=STRICT)
class Storage:
    """The task `storage`: how much text, which entropy coder at which level, how often."""

    context: Lengths = (512,)
    entropy: Literal["none", "zlib", "zstd", "ans", "deflate"] = "zstd"
    level: Annotated[int | None, Field(strict=True, description="a whole number, or nothing for the coder's own")] = None
    repetitions: Repetitions = 3
    protocol: Literal["strict", "deploy"] = "strict"

    def params(self, context: int) -> dict[str, Any]:
        """What a cell carries, fully resolved."""
        coder = {"entropy": self.entropy, "level": self.level}
        return {"context": context, **coder, "repetitions": self.repetitions, "protocol": self.protocol}


@dataclass(frozen=True, config=STRICT)
class Sensitivity:
    """The task `sensitivity`: how much text each probe scores, one side of one layer packed at a time."""

    context: Lengths = (512,)
    tokens: Annotated[Whole, Field(ge=1, description=f"a whole number of tokens from 1 to {MOST}; 8k is {8 * K}")] = 1024
    layers: Annotated[
        AnyWords,
        Field(description="the schemes whose layers are probed one by one, as names or patterns; of others K, V and both as a whole are"),
    ] = ("*",)
    chunk: AtLeastOne = None

    def params(self, context: int) -> dict[str, Any]:
        """What a cell carries, fully resolved."""
        about = {"recipe": "stream", "protocol": "strict"}
        return {**about, "context": context, "tokens": self.tokens, "chunk": min(self.chunk or 512, context)}

    def probes(self, label: str) -> str:
        """How a scheme is probed."""
        return "layers" if any(matches(pattern, label) for pattern in self.layers) else "sides"


@dataclass(frozen=True, config=STRICT)
class Needle:
    """The task `needle`: numbers hidden in text, how deep, in what form, how often."""

    context: Lengths = (1024,)
    depth: Places = (0.0, 0.25, 0.5, 0.75, 1.0)
    form: Literal["passkey", "multi"] = "passkey"
    samples: Repetitions = 4
    digits: Annotated[int, Field(strict=True, ge=2, le=12, description="a whole number from 2 to 12")] = 5
    seed: Seed = 0
    chat: Annotated[bool, Field(description="true or false")] = True
    protocol: Literal["strict", "deploy"] = "strict"
    chunk: AtLeastOne = None

    def params(self, context: int) -> dict[str, Any]:
        """What a cell carries, fully resolved."""
        asked = {"depth": list(self.depth), "form": self.form, "samples": self.samples, "digits": self.digits, "seed": self.seed}
        return {"context": context, **asked, "chat": self.chat, **_cut(self, context)}


@dataclass(frozen=True, config=STRICT)
class Generation:
    """The task `generation`: how much text before, how many tokens after, how many prompts."""

    context: Lengths = (256,)
    new: Annotated[Whole, Field(ge=2, description="a whole number of tokens, 2 or more")] = 64
    prompts: Repetitions = 16
    seed: Seed = 0
    protocol: Literal["strict", "deploy"] = "strict"
    chunk: AtLeastOne = None

    def params(self, context: int) -> dict[str, Any]:
        """What a cell carries, fully resolved."""
        return {"context": context, "new": self.new, "prompts": self.prompts, "seed": self.seed, **_cut(self, context)}


@dataclass(frozen=True, config=STRICT)
class LmEval:
    """The task `lm_eval`: tasks of lm-evaluation-harness, of how many documents, and where its own definitions of tasks lie. Requests
    longer than the context are cut from the left, as it does."""

    tasks: Words
    context: Lengths = (2048,)
    limit: Annotated[int | None, Field(strict=True, ge=1, description="a whole number of documents, 1 or more")] = None
    fewshot: Annotated[
        int | None, Field(strict=True, ge=0, le=64, description="a whole number from 0 to 64, or nothing for the task's own")
    ] = None
    include_path: Annotated[str | None, Field(description="a folder with definitions of tasks")] = None
    seed: Seed = 1234
    protocol: Literal["strict", "deploy"] = "strict"
    chunk: AtLeastOne = None

    def params(self, context: int) -> dict[str, Any]:
        """What a cell carries, fully resolved."""
        asked = {
            "task": "+".join(self.tasks),
            "limit": self.limit,
            "fewshot": self.fewshot,
            "include_path": self.include_path,
            "seed": self.seed,
        }
        return {"context": context, **asked, **_cut(self, context)}

    def each(self) -> list[LmEval]:
        """Each of its tasks is a task of its own here, with cells and a table of its own."""
        rest = {field.name: getattr(self, field.name) for field in fields(self)} | {"context": list(self.context)}
        return [LmEval(**(rest | {"tasks": name})) for name in self.tasks]


def _cut(task: Needle | Generation | LmEval, context: int) -> dict[str, Any]:
    """The protocol, and the chunks of a prompt; deployed, its last one is exact when the answer begins, so there are several."""
    return {"protocol": task.protocol, "chunk": task.chunk or min(512, context if task.protocol == "strict" else context // 4)}


@dataclass(frozen=True, config=STRICT)
class Breakdown(Steps):
    """The task `breakdown`: how deep, how many tokens there, how often."""

    new: SomeTokens = 32


Task = Perplexity | Decode | Prefill | Memory | Storage | Sensitivity | Needle | Generation | LmEval | Breakdown
TASKS: dict[str, type[Task]] = {
    "perplexity": Perplexity,
    "decode": Decode,
    "prefill": Prefill,
    "memory": Memory,
    "storage": Storage,
    "sensitivity": Sensitivity,
    "needle": Needle,
    "generation": Generation,
    "lm_eval": LmEval,
    "breakdown": Breakdown,
}
LENGTH = {"decode": "depth", "breakdown": "depth"}  # the key that says how long the text is, where it is not `context`


@dataclass(frozen=True, config=STRICT)
class Calibration:
    """What schemes learn from that need it: text other than what is scored."""

    corpus: Corpus = Field(default_factory=lambda: {"name": "python-docs"})
    tokens: Annotated[Whole, Field(ge=1, description=f"a whole number of tokens from 1 to {MOST}; 8k is {8 * K}")] = 4096
    seed: Annotated[int, Field(strict=True, ge=0, lt=1 << 32, description="a whole number, 0 or more")] = 0


@dataclass(frozen=True, config=STRICT)
class GateKeys(Gate):
    """A gate as a suite writes it."""

    schemes: Annotated[Words, Field(description="a name of a scheme or a pattern with * and ?, or a list of them")]
    metric: Metric
    limit: Annotated[float, Field(ge=0, allow_inf_nan=False, description="a number, 0 or more")]
    sided: Literal["one", "two"] = "two"
    expect: Literal["pass", "fail"] = "pass"
    required: Annotated[bool, Field(description="true or false")] = True


KEYS = ("model", "corpus", "backend", "device", "dtype", "kernel")  # that have an option of their own: `--model X` is `--set model=X`


@plain_dataclass(frozen=True)
class Overrides:
    """What the command line puts in the place of what files say: KEYS and `--set` become assignments, one like the other."""

    model: str | None = None
    corpus: str | None = None
    backend: str | None = None
    device: str | None = None
    dtype: str | None = None
    kernel: str | None = None
    sets: tuple[str, ...] = ()  # `a.b=c`
    bypass: str | None = None  # no key of a suite: applied to every scheme


@plain_dataclass(frozen=True)
class Suite:
    """A suite without mistakes. Models and texts are relative to `root`, the folder of its file."""

    root: Path
    settings: Settings
    schemes: tuple[Scheme, ...]
    tasks: tuple[tuple[str, Task], ...]
    calibration: Calibration
    gates: tuple[Gate, ...]
    source: str = ""  # the file as it was named, relative to the working folder
    lines: tuple[int, ...] = ()  # where each gate stands in it
