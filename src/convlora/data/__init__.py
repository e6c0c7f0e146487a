"""Images and masks of a user: layouts, checks, reading, geometry, augmentation, sample data."""
