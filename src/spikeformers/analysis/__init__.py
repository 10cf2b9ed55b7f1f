"""What a model computes, seen from outside: spike-driven or not, how often it fires, the cost."""

from spikeformers.analysis.alphabet import interpret
from spikeformers.analysis.audit import Report, Row, audit
from spikeformers.analysis.capture import Graph, capture
from spikeformers.analysis.energy import EnergyReport, EnergyRow, cost_models, energy, price
from spikeformers.analysis.firing import (
    count_spikes,
    evaluating,
    firing_rates,
    record_spikes,
)
from spikeformers.analysis.observe import Observed
from spikeformers.analysis.spikingjelly import from_spikingjelly

__all__ = [
    "EnergyReport",
    "EnergyRow",
    "Graph",
    "Observed",
    "Report",
    "Row",
    "audit",
    "capture",
    "cost_models",
    "count_spikes",
    "energy",
    "evaluating",
    "firing_rates",
    "from_spikingjelly",
    "interpret",
    "price",
    "record_spikes",
]
