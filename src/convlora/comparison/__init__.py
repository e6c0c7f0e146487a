"""Methods side by side on a user's data: a run for each method, seed and number of images, and tables."""
