"""What a task sees of a model: a session, whatever backend opened it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from typing import Any, Literal
from typing import Protocol as Interface

import numpy as np
from numpy.typing import NDArray

from tqbench.core.evidence import SideEvidence
from tqbench.core.scheme import Scheme
from tqbench.core.state import Agreement, State

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


# What a query sees. strict: what the scheme would hold at its position in decoding. deploy: the tokens of its own forward call exact and
# older ones as the policy holds them, which is what engines do.
Protocol = Literal["strict", "deploy"]


@dataclass(frozen=True)
class Terms:
    """How a cell wants a scheme's cache: which kernels, which protocol, and what its codecs learn from."""

    kernel: str = "auto"
    protocol: Protocol = "strict"
    calibration: Any = None  # from `Session.calibrate`; None if the scheme needs none
    quiet: bool = False  # the instrument does no work of its own while tokens come, because they are timed; `Cache.verify` makes up for it


@dataclass(frozen=True)
class LocalModel:
    """A model name resolved to checked local files."""

    name: str
    path: str  # a directory in Hugging Face layout, or a GGUF file
    sha256: str | None = None  # of a GGUF file, or of samples of a directory's weights
    trust_remote_code: bool = False
    revision: str | None = None  # the commit, of a model that the hub has
    config: dict[str, Any] | None = field(default=None, hash=False)  # of a model without files, whose weights are made on the spot


@dataclass(frozen=True)
class ModelInfo:
    """The facts about a loaded model that records carry."""

    name: str
    architecture: str
    layers: int
    kv_layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int
    dtype: str
    device: str
    weights: str  # how they are stored and computed
    bos_token: int | None  # the token to put first, if the model was trained with one
    revision: str | None = None  # the commit, of a model that the hub has
    weights_sha256: str | None = None  # of their files, as `LocalModel.sha256`
    remote_code: str | None = None  # the files of the model's own code that ran, with their hash; None if none did
    start_token: int | None = None  # what the tokenizer calls the first token, whether or not it puts one
    stop_tokens: tuple[int, ...] = ()  # any of these ends an answer


@dataclass(frozen=True)
class TokenScores:
    """Per scored token, in order. Those of a comparison are empty when there was nothing to compare with."""

    nll: Floats
    base_nll: Floats
    kld: Floats
    rank: NDArray[np.int64]  # how many tokens the scheme puts before the baseline's first choice
    place: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))  # how many it puts before the target

    @staticmethod
    def join(parts: list[TokenScores]) -> TokenScores:
        """Several runs of tokens one after another."""
        return TokenScores(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(TokenScores)))


@dataclass(frozen=True)
class Exact:
    """What a layer keeps of a context in the model's own cache, [kv_heads, tokens, head_dim], and the bias of its key projection,
    [kv_heads, head_dim]: zeros where it has none, None where this backend cannot tell."""

    layer: int
    k: NDArray[np.float32]
    v: NDArray[np.float32]
    k_bias: NDArray[np.float32] | None


class Cache(Interface):
    """A cache of one sequence. The baseline's is the engine's own and has no evidence."""

    def evidence(self) -> list[SideEvidence]:
        """Per layer and side, what the store did."""

    def verify(self) -> None:
        """After quiet tokens: recompute the last step's attention by the reference, and the codec error of what is resident."""

    def kv_bytes(self) -> int:
        """Bytes of all keys and values that are kept, in whatever form."""

    def state(self) -> State:
        """Everything that it holds, to be saved; `Session.new_cache` takes it back. Unsupported where a part of it is not known here."""

    def agreement(self, context: Any) -> list[Agreement]:
        """What it holds of a context, before anything is added, beside the context itself: per layer and side."""


class Stretch(Interface):
    """Decoding steps that were captured in rounds, and are run again without Python asking for every launch."""

    name: str  # of the cache: `store`, or how the model's own is kept here
    attention: dict[str, int]  # the forms of the framework's own attention in a step, and how often
    off: float  # by how much at most runs through differ from the uncaptured one, relative

    @property
    def rounds(self) -> int:
        """How many."""

    @property
    def packed(self) -> dict[str, list[int]]:
        """How many tokens its steps pack, by side, in each layer; empty for the model's own cache."""

    def begin(self) -> None:
        """Before a run through all rounds: what is left of the one before is wiped, so that it cannot be taken for this one's."""

    def replay(self, number: int) -> None:
        """Run a round again; all of them, in their order."""

    def check(self) -> None:
        """After a run through all rounds; EvidenceError if it came out otherwise than uncaptured, or than the first run through."""

    def evidence(self) -> list[SideEvidence]:
        """The cache's, its last attention compared with the reference."""


class Session(Interface):
    """A backend with a model loaded."""

    info: ModelInfo

    def tokenize(self, text: str) -> Ids:
        """Token ids without special tokens."""

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""

    def chat(self) -> tuple[Ids, Ids]:
        """What stands before and after a user's message in the model's own chat template, up to where the answer begins; Unsupported if
        its tokenizer has no template."""

    def weights_sha256(self) -> str:
        """A hash that tells these weights from others: of names, shapes, and values spread over all of them."""

    def new_cache(self, scheme: Scheme | None, terms: Terms = Terms(), context: Any = None) -> Cache:
        """A cache that is empty or holds a context; None is the model's own cache and attention. A scheme packs the context as its policy
        says; nobody attends to it here, so none of it counts as attended. A `State` is taken back as it was: it must be of such a cache."""

    def context(self, tokens: Ids) -> Any:
        """K and V of all layers after these tokens, and what else the model needs to go on: for `new_cache`, any number of times."""

    def exact(self, context: Any) -> list[Exact]:
        """A context as arrays, layer by layer: of a sliding window what is left. Unsupported where the cache keeps an order of its own."""

    def calibrate(self, windows: Sequence[Ids]) -> Any:
        """Run other text through the model's own cache, for codecs to learn from; what comes back goes into `Terms`."""

    def forward(self, tokens: Ids, cache: Any, *, last: bool = False) -> Any:
        """Run the tokens; the logits, as the engine's array [tokens, vocab]. `last`: of the last token alone, as engines prefill."""

    def choose(self, logits: Any) -> int:
        """The most likely token after the last one, read back from the device: a step is done once this is known."""

    def stretch(self, tokens: Ids, cache: Any, together: int, recorder: Any) -> Stretch:
        """The tokens, each a step, captured by a `measure.graphs.Recorder` in rounds of so many; the cache is used up. Unsupported if a
        step does what no graph can hold."""

    def operations(self) -> AbstractContextManager[None]:
        """While open, the operations of a forward pass are stages of their own; Unsupported where they cannot be told apart."""

    def score(
        self,
        tokens: Ids,
        cache: Any,
        targets: Ids,
        against: Any = None,
        chunk: int = 512,
        progress: Callable[[int], None] | None = None,
        kept: dict[int, Any] | None = None,
    ) -> TokenScores:
        """Run the tokens in chunks and reduce the logits where targets >= 0, beside the same tokens through `against`. `kept` holds the
        logits of `against` by position, for the next scheme on the same tokens in the same chunks; empty at first."""

    def close(self) -> None:
        """Give the model back as it was."""
