"""Adapters of fog_a for flow-matching models: a file or folder each, found by the entry points `fog_a.adapters`."""
