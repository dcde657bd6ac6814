"""Which calls of a model are its residual blocks: one recorded forward, read in the order below.

`operations` `trace` (what happened) → `streams` (where residual streams are added to) → `owners` (in whose forward) →
`passages` (which elements are carried over unchanged) → `places` `levels` (which of the nested calls and list items are
the layers) → `blocks`.
"""
