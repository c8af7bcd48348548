"""Pure functions on arrays: the plain formulas, and what can be said about their means."""
