"""Pretraining of the bundled backbone on generated scenes."""
