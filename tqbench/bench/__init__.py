"""Micro-benchmarks: operation × form × shape, with the baselines that anyone could run instead and the memory limit beside them.

No form has a time before its output was held to the reference on the same packed data, and once more on a call that was timed.
"""
