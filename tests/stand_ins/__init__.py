"""Small stand-ins for code that has no package."""
