"""How the embedded models' weights were made; the entry point is ``python -m experiments.train_embedded``."""
