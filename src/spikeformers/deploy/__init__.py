"""The network leaves PyTorch: what chips can run of it, and what single spikes make of it."""

from spikeformers.deploy._async_network import AsyncNetwork
from spikeformers.deploy.arrival_order import OrderRow, arrival_order
from spikeformers.deploy.async_sim import AsyncRun, run_async, run_waiting
from spikeformers.deploy.chip import ChipReport, Profile, Violation, check, list_chips, load_chip
from spikeformers.deploy.inventory import Operation, inventory
from spikeformers.deploy.jitter import JitterReport, JitterRow, jitter_study
from spikeformers.deploy.vectors import Vectors, check_vectors, export_vectors, read_vectors

__all__ = [
    "AsyncNetwork",
    "AsyncRun",
    "ChipReport",
    "JitterReport",
    "JitterRow",
    "Operation",
    "OrderRow",
    "Profile",
    "Vectors",
    "Violation",
    "arrival_order",
    "check",
    "check_vectors",
    "export_vectors",
    "inventory",
    "jitter_study",
    "list_chips",
    "load_chip",
    "read_vectors",
    "run_async",
    "run_waiting",
]
