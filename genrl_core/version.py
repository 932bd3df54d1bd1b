"""The version of GenRL."""

__version__ = "0.1.0"
