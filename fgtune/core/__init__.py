"""The ground: files and their hashes, folders that appear whole, errors, the fast BLAS that MLX needs."""

from lazy_loader import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    submod_attrs={
        "blas": ["BlasReport", "device_report", "mlx", "use_fast_blas"],
        "errors": ["DeployError", "ExportError", "FgtuneError", "ProjectError", "ToolMissing", "TrainError"],
        "files": ["file_sha256", "write_json"],
        "folders": ["new_folder", "recover", "replace_folder"],
        "project": ["project_root"],
    },
)
