"""Training: `fit` is the entry point."""
