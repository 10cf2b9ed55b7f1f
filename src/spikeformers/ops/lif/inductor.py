"""What TorchInductor sees: the reference loop, which it fuses with the operations around it.

Outside of compilation, and in exported graphs, the neuron stays one node.
"""

from typing import Any

import torch
from torch import Tensor

from spikeformers.ops.lif import reference
from spikeformers.ops.lif.op import sum_like


def show_to_inductor() -> None:
    """Tell Inductor how to take the neuron apart; calling it again changes nothing."""
    # Imported where it is needed: it takes a second, and few programs compile.
    from torch._inductor.decomposition import decompositions

    decompositions[torch.ops.spikeformers.lif.default] = _forward
    decompositions[torch.ops.spikeformers.lif_backward.default] = _backward


def _forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        return reference.lif_forward(*args)


def _backward(
    grad_spikes: Tensor,
    grad_v: Tensor,
    h: Tensor,
    x: Tensor | None,
    v0: Tensor | None,
    decay: Tensor,
    v_threshold: Tensor,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *others, learns_threshold = options
    grad_x, grad_v0, grad_decay, grad_threshold = reference.lif_backward(
        grad_spikes, grad_v, h, x, v0, decay, v_threshold, *others
    )
    return (
        grad_x,
        grad_v0,
        sum_like(grad_decay, decay),
        sum_like(grad_threshold, v_threshold)
        if learns_threshold
        else torch.zeros_like(v_threshold),
    )
