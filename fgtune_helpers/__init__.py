"""Helpers of the fgtune workbook: one module a job, nothing happens on import."""

__version__ = "0.1.0"
