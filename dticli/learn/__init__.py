"""A word learned from photos: its start, the steps, and the folder that records them."""
