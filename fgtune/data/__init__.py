"""From a user's files to training rows and held-out cases: readers, splits without leaks, augmentation, token rows."""

from lazy_loader import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submod_attrs={
        "augment": ["augment", "augment_examples", "combine"],
        "batches": ["Batch", "make_batch"],
        "developer_turn": ["DeveloperTurn", "trained_turn"],
        "examples": ["calls_per_tool", "first_calls", "first_query", "label"],
        "grouping": ["group_examples"],
        "novelty": ["novelty_of", "with_novelty"],
        "readers": ["DataError", "load_examples", "load_tools", "read_examples", "read_json", "read_tools"],
        "rows": ["Case", "Row", "case_of", "load_cases", "load_rows", "tokenize", "write_jsonl"],
        "splits": ["leaks", "nearest_neighbour_score", "random_split", "split_examples"],
        "verbatim": ["is_verbatim", "verbatim_arguments"],
    },
)
