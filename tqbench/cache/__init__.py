"""The KV store: what is kept, what is packed, when; the byte ledger; the evidence counters."""
