"""What TorchInductor sees: the reference loop, which it fuses with the operations around it.

Outside of compilation, and in exported graphs, the neuron stays one node.
"""

from typing import Any

import torch
from torch import Tensor

from spikeformers.ops.lif import eager, reference


def show_to_inductor() -> None:
    """Tell Inductor how to take the neuron apart; calling it again changes nothing."""
    # Imported where it is needed: it takes a second, and few programs compile.
    from torch._inductor.decomposition import decompositions

    decompositions[torch.ops.spikeformers.lif.default] = _forward
    decompositions[torch.ops.spikeformers.lif_backward.default] = _backward


def _forward(*args: Any) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        spikes, v, _ = reference.lif_forward(*args)
        return spikes, v


def _backward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *arguments, _learns_parameters = args  # Inductor drops a gradient that nobody reads
    with torch.no_grad():
        return eager.summed_gradients(*arguments)
