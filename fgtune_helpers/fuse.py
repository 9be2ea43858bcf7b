"""Stage 04: the adapters merged into the base model."""

from fgtune.models.fuse import fuse

__all__ = ["fuse"]
