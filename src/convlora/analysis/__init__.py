"""What tuning has done to the encoder: routing, attention distance, a linear probe of its features."""
