"""The engine: a library without notebooks or printing. `fgtune.inference` alone knows the folders of a run.

from fgtune import load
model = load("runs/quickstart")
model.call("12 * 7").calls
"""

from lazy_loader import attach

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = attach(
    __name__,
    submod_attrs={"inference": ["Answer", "LoadError", "Model", "Result", "ToolError", "load", "tool"]},
)
