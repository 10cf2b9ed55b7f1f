"""What TorchInductor sees: the reference loop, which it fuses with the operations around it."""

from typing import Any

import torch
from torch import Tensor

from spikeformers.ops.ilif import reference


def show_to_inductor() -> None:
    """Tell Inductor how to take the integer neuron apart; calling it again changes nothing."""
    # Imported where it is needed: it takes a second, and few programs compile.
    from torch._inductor.decomposition import decompositions

    decompositions[torch.ops.spikeformers.ilif.default] = _forward
    decompositions[torch.ops.spikeformers.ilif_backward.default] = reference.ilif_backward


def _forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        return reference.ilif_forward(*args)
