"""The integer neuron as a chip plays it: an integer becomes so many binary spikes.

A step is a window of `levels` sub-steps. The neuron collects the currents of the whole window, and
fires one spike in each of its first `s` sub-steps, where `s` is the integer of `ops/ilif`. It is
for inference and has no gradient.
"""

from typing import Any

from torch import Tensor
from torch.library import register_fake

from spikeformers.ops.alphabet import declare_alphabet
from spikeformers.ops.checks import membrane_dtype
from spikeformers.ops.define import custom_op
from spikeformers.ops.ilif import reference
from spikeformers.types import ANALOG, BINARY


@custom_op("spikeformers::ilif_burst")
def ilif_burst(
    x: Tensor, v0: Tensor | None, levels: int, decay: float, rounding: str, v_threshold: float
) -> tuple[Tensor, Tensor]:
    """Return binary spikes `[T*levels, ...]` of currents `[T*levels, ...]`, and the membrane."""
    return reference.ilif_burst_forward(x, v0, levels, decay, rounding, v_threshold)


@register_fake(ilif_burst)
def _(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[1:], dtype=membrane_dtype(x))


declare_alphabet(ilif_burst, lambda *_: (BINARY, ANALOG))
