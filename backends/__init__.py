"""Engines that tqbench runs schemes in, reached through the entry points `tqbench.backends`."""
