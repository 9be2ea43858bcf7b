"""The engine: a library that knows nothing of notebooks, run folders or printing."""

__version__ = "0.1.0"
