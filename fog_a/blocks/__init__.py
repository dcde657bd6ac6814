"""Residual blocks of somebody's model: what they are, closing them, reading them, and leaving the model as it was."""
