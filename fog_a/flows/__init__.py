"""Flow-matching models with their own batches: adapters, how they are chosen, and what many of them need."""
