"""Benchmarks: one module per table of the README."""
