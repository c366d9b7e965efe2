"""Planted: benchmarks.fuzz sees whether a file of weights can have it imported."""
