"""What a cache made of stores says of itself, in any backend."""

from __future__ import annotations

from typing import Any

from tqbench.cache.store import Store
from tqbench.core.errors import EvidenceError
from tqbench.core.evidence import SideEvidence, kept
from tqbench.core.state import Agreement


class Stores:
    """To be inherited beside the engine's own cache."""

    stores: list[Store]

    def agreement(self, context: Any) -> list[Agreement]:
        """With the exact keys and values of a context."""
        return [side for store in self.stores for side in store.agreement(*context.piece(store.layer.index))]

    def evidence(self) -> list[SideEvidence]:
        """Per layer and side, what the stores did."""
        return [side for store in self.stores for side in store.evidence()]

    def verify(self) -> None:
        """What quiet left out."""
        for store in self.stores:
            store.verify()

    def kv_bytes(self) -> int:
        """Bytes of all keys and values that are kept."""
        return kept(self.evidence())

    def check(self, tokens: int) -> None:
        """Raise if any layer's queries did not go through its store."""
        for store in self.stores:
            if not store.queries == store.tokens == tokens:
                through = f"{store.tokens} of {tokens} tokens stored, {store.queries} attended through the store"
                raise EvidenceError(f"layer {store.layer.index}: {through}")
