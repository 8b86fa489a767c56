"""dti: teach a text-to-image model a new word by Directional Textual Inversion (arXiv:2512.13672)."""

__version__ = "0.1.0"
