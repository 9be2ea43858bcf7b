"""A tuned model in a program: load it, ask it, let it call Python functions."""

from lazy_loader import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submod_attrs={
        "decorator": ["ToolError", "tool"],
        "functions": ["Result"],
        "model": ["Answer", "Model", "load"],
        "modules": ["module_tools"],
        "sources": ["LoadError"],
    },
)
