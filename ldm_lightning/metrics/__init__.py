"""Metrics: distances of distributions, reconstruction quality and class fidelity."""
