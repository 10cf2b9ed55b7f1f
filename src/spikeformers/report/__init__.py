"""Finished runs as HTML pages, made from their saved files only, so old runs can be redrawn."""

from spikeformers.report.comparison import comparison_table, write_comparison
from spikeformers.report.jitter import draw_jitter
from spikeformers.report.page import write_report

__all__ = ["comparison_table", "draw_jitter", "write_comparison", "write_report"]
