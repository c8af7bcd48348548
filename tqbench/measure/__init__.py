"""Clocks, memory, the machine. Nothing else in tqbench reads any of them."""
