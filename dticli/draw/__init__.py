"""From a model and words to pictures."""
