"""Benchmarks and load tests of a running server. Nothing here is imported by it."""
