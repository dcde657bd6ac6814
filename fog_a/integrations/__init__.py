"""AG-REPA inside other people's training loops; each file imports its library, so import the one you use.

Accelerate needs none: `model, reg, optimizer, loader = accelerator.prepare(model, reg, optimizer, loader)`.
"""
