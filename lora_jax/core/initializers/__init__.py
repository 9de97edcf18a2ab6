"""Initialisers: pure functions (W, data, key, spec) -> (a, b, residual), one matrix each."""
