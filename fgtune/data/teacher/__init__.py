"""Training examples written by a language model, the teacher: planned, asked for, and verified one by one."""

from lazy_loader import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submod_attrs={
        "client": ["Teacher", "TeacherError"],
        "plan": ["make_plan", "summary"],
        "task": ["Task"],
        "values": ["Values", "collect_values"],
        "verify": ["Refused", "Written"],
        "write": ["ExamplePlan", "Generated", "generate"],
    },
)
