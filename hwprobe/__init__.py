"""Measure a machine and a model, and decide what fits."""
