"""What scores are for: layers taken out, guided by their absence, or taken from a cache."""
