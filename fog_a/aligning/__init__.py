"""AGREPA: probes, selects, aligns, inside a training loop that is not ours."""
