"""Plain SAM: encoder, prompt encoder, decoder and the reading of its weights; knows nothing of adapters."""
