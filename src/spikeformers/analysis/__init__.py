"""What a model computes, seen from outside: spike-driven or not, and how often it fires."""

from spikeformers.analysis.alphabet import interpret
from spikeformers.analysis.audit import Report, Row, audit
from spikeformers.analysis.capture import Graph, capture
from spikeformers.analysis.firing import (
    count_spikes,
    evaluating,
    firing_rates,
    record_spikes,
)

__all__ = [
    "Graph",
    "Report",
    "Row",
    "audit",
    "capture",
    "count_spikes",
    "evaluating",
    "firing_rates",
    "interpret",
    "record_spikes",
]
