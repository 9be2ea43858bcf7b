"""Training: the loop, its settings, batches, checkpoints and workers."""

from lazy_loader import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submod_attrs={
        "batches": ["iterate_batches", "plan_epoch"],
        "callbacks": ["format_record", "reporting_callback"],
        "choose": ["choose_precision", "choose_softmax", "make_engine"],
        "config": ["History", "TrainConfig", "learning_rate_at"],
        "curve": ["Finished", "Point", "nested_parts", "refit_parts"],
        "loop": ["Trainer", "train", "validation_loss"],
        "workers": ["train_on_workers"],
    },
)
