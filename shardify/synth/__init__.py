"""Generate synthetic data sets for tests and benchmarks."""
