"""What the notebooks call: one small module a stage over the engine `fgtune`. Nothing happens on import."""

__version__ = "0.1.0"
