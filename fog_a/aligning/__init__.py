"""AGREPA: probes, selects, aligns, in a training loop that is not ours; `lightning` and `transformers` are two."""
