"""The deployed page: build it, preview it on this machine, try it in a real browser."""

from lazy_loader import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submod_attrs={
        "browser": ["find_chromium", "try_in_browser"],
        "build": ["SiteReport", "build_site"],
        "pieces": ["whole_model"],
        "prompt_cache": ["precompute_prompt_cache", "stored_prompt_cache"],
        "server": ["serve", "serving"],
    },
)
