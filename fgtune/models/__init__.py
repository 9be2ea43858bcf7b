"""Base models by route, their files, adapters, and Gemma 3's architecture described once."""

from lazy_loader import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submod_attrs={
        "adapters": ["add_lora", "load_adapters", "load_model", "save_adapters"],
        "base": ["cache_dir", "resolve_base"],
        "base_model": ["BaseModel", "BaseModelError"],
        "fuse": ["FuseError", "FuseReport", "fuse"],
        "gemma3": ["Gemma3Config", "LayerOperations", "decoder_layer"],
        "prune": ["PruneError", "prune_unused_merges"],
        "tokenizer_files": ["load_tokenizer"],
        "vocabulary": ["Vocabulary", "VocabularyError", "choose_entries", "keep_vocabulary", "prune_vocabulary"],
    },
)
