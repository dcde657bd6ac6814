"""FoG-A: closing one block at a time, and the ways to do it in half the work."""
