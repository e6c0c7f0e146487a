"""Scene families: one file for each kind of image that users segment."""
