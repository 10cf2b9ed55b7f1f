"""What TorchInductor sees: the reference loop, which it fuses with the operations around it."""

from typing import Any

import torch
from torch import Tensor

from spikeformers.ops.dsr import reference


def show_to_inductor() -> None:
    """Tell Inductor how to take the neuron apart; calling it again changes nothing."""
    # Imported where it is needed: it takes a second, and few programs compile.
    from torch._inductor.decomposition import decompositions

    decompositions[torch.ops.spikeformers.dsr.default] = _forward
    decompositions[torch.ops.spikeformers.dsr_backward.default] = reference.dsr_backward


def _forward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *used, _threshold_grad = args
    with torch.no_grad():
        return reference.dsr_forward(*used)
