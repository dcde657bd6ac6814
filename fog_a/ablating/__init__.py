"""FoG-A: closing one block at a time, and the ways to do it in half the work.

`ablation` holds the theory and `attribute`; `variants` decides how: `prefix`, `fanout` or one at a time.
"""
