"""Readers of tools and examples, one module for each public shape."""

from lazy_loader import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submod_attrs={
        "examples": ["load_examples", "read_examples", "shape_of"],
        "files": ["DataError", "read_json"],
        "tools": ["load_tools", "read_tools"],
    },
)
