"""Drawing pictures with a model and learned words."""
