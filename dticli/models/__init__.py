"""Models: choosing one, reading its files, loading it, and fitting it into memory."""
