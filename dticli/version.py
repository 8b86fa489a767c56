"""The version, in its own module to avoid a circular import."""

__version__ = "0.1.0"
