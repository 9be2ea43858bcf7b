"""Scores: an answer judged, scorecards, the divergence of two models, near ties."""

from lazy_loader import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submod_attrs={
        "coverage": ["refused_calls"],
        "divergence": ["MlxLogits", "divergence"],
        "judging": ["Result", "judge"],
        "extrapolation": ["accuracies", "interval"],
        "learning_curve": ["LearningCurve"],
        "near_ties": ["differences", "unexplained_differences"],
        "needs": ["Needs", "needs_of"],
        "scorecards": ["Comparison", "Scorecard", "score", "wilson"],
    },
)
