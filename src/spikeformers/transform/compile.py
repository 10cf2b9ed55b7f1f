"""`torch.compile` for spiking networks."""

from typing import cast

import torch
from torch import nn

from spikeformers.ops import show_to_inductor


def compile_spiking(model: nn.Module) -> nn.Module:
    """Return a callable twin that TorchInductor compiles when it is first called.

    To PyTorch a neuron is one opaque operation; here Inductor may look inside, and fuses the loop
    over time with the norms and sums around it. The twin shares the parameters of the model, which
    stays as it is. The first call of each input shape takes minutes on a slow machine; Inductor
    keeps what it has compiled on disk.

    Args:
        model: Any module built with our neurons.
    """
    show_to_inductor()
    return cast(nn.Module, torch.compile(model))
