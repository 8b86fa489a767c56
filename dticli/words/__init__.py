"""Learned words: their files, their place in a pipeline, and the vocabulary around them."""
