"""Weights the metrics need: which are shipped, how the others are fetched, and the hashes both must have."""
