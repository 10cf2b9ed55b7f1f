"""Write docs/concepts/sepconv.md: two ways to make Meta-SpikeFormer spike-driven, and their price.

python docs/make_sepconv.py     takes some minutes

Weights are random and norms calibrated, so that rates are those of no trained network: the page
says which ones they are. Counts are exact and repeatable.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import spikeformers as sf
from spikeformers.analysis import EnergyReport, price
from spikeformers.layers import BatchNorm, SpikeSepConv
from spikeformers.neurons import LIF
from spikeformers.transform import merge_depthwise

PAGE = Path(__file__).parent / "concepts" / "sepconv.md"
SIZES, THRESHOLDS, TIMESTEPS, SAMPLES = ("15m", "55m"), (1.0, 0.6), 4, 2

HEAD = f"""# The separable convolution of Meta-SpikeFormer, and two ways to mend it

The audit finds one kind of multiplication in Meta-SpikeFormer (SDT-V2): in its `SepConv` no neuron
stands between the depthwise 7x7 and the last 1x1 convolution, so that the 1x1 sees real values.
There are two ways out, both by composition:

- *merge*, `transform.merge_depthwise(model)`: one dense 7x7 kernel equals the two, so trained
  weights stay valid. Each weight of the 1x1 becomes 49.
- *neuron between*, `create_model(name, token_mixer=SpikeSepConv)`: as E-SpikeFormer (V3) has it.
  This is another network, and has to be trained.

A spike of the merged kernel reaches 49 times the outputs that it reached through the 1x1. Under the
`paper` prices that is cheaper than multiplying while the neurons in front fire at less than
4.6 / (49 * 0.9) = 10 %, under `int8` at less than 16 %; a neuron between is cheaper at every rate.

The price on 224x224 pixels, T={TIMESTEPS}, per image; mJ under three [cost models](energy.md).
Weights are those of the folded network, whose RepConvs are dense 3x3 kernels, and those of its
`SepConv`s alone. They are random, with batch norms calibrated on normal noise; counts are means of
{SAMPLES} such images. The rates are those of no trained network: compare rows, not with published
energies. A lower threshold stands for a livelier network. Made by `python docs/make_sepconv.py`; do
not edit it.

"""
COLUMNS = [
    *("size", "threshold", "network", "rate", "weights, M", "of SepConv, M", "AC, M", "MAC, M"),
    *("paper, mJ", "int8, mJ", "memory, mJ", "verdict"),
]


@torch.no_grad()
def calibrate(model: nn.Module, x: Tensor) -> nn.Module:
    """Set the statistics of all norms to those of one batch."""
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.momentum = 1.0
    model.train()(x)
    return model.eval()


def networks(name: str, v_threshold: float, x: Tensor) -> Iterator[tuple[str, nn.Module]]:
    """Yield the published network and the mended ones."""
    neuron = partial(LIF, v_threshold=v_threshold)
    torch.manual_seed(0)
    published = calibrate(sf.create_model(name, neuron=neuron), x)
    yield "published", sf.fold(published)
    yield "merge", merge_depthwise(published)
    torch.manual_seed(0)
    between = sf.create_model(name, neuron=neuron, token_mixer=SpikeSepConv)
    yield "neuron between", sf.fold(calibrate(between, x))


def row(network: nn.Module, report: EnergyReport, verdict: str) -> list[str]:
    """Return the columns from the rate on."""
    weights = {path: p.numel() for path, p in network.named_parameters()}
    of_mixers = sum(n for path, n in weights.items() if ".mixer." in path)
    millions = [sum(weights.values()), of_mixers, report.total["AC"], report.total["MAC"]]
    costs = [f"{price(report.counts, cost):.2f}" for cost in ("paper", "int8", "memory")]
    return [f"{report.rate:.1%}", *(f"{n / 1e6:.2f}" for n in millions), *costs, verdict]


def main() -> None:
    """Price all networks, and write the page."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(SAMPLES, 3, 224, 224, generator=generator)
    x = sf.encode.direct(images, timesteps=TIMESTEPS)
    lines = [f"| {' | '.join(COLUMNS)} |\n", "| --- " * len(COLUMNS) + "|\n"]
    for size in SIZES:
        for v_threshold in THRESHOLDS:
            for name, network in networks(f"meta_spikeformer_{size}", v_threshold, x):
                verdict = sf.audit(network, x[:1, :1]).verdict
                report = sf.energy(network, x.split(1, dim=1))
                cells = [size.upper(), f"{v_threshold:g}", name, *row(network, report, verdict)]
                lines.append(f"| {' | '.join(cells)} |\n")
                print(lines[-1], end="", flush=True)
    PAGE.write_text(HEAD + "".join(lines))


if __name__ == "__main__":
    main()
