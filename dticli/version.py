"""The version; apart from the package, whose functions import all that records it."""

__version__ = "0.1.0"
