"""A finished run as one HTML page, made from its saved files only, so old runs can be redrawn."""

from spikeformers.report.page import write_report

__all__ = ["write_report"]
