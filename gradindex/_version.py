"""The version of gradindex."""

__version__ = "0.1.0"
