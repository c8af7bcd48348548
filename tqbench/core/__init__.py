"""The vocabulary: pure data and protocols that every other package speaks. Imports no framework."""
