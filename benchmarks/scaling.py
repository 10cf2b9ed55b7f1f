"""What a step of training costs as steps T, tokens N and depth grow, with a straight line fitted.

python -m benchmarks --case scaling
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.measure import interleaved
from benchmarks.sides import Network, ours
from spikeformers import accelerate
from spikeformers.layers import SDSA3, Branch, Trunk
from spikeformers.neurons import LIF
from spikeformers.train.log import write_json

ROUNDS = 5
STRIDE = 16


@dataclass(frozen=True)
class Curve:
    """Milliseconds of a step at several sizes.

    Attributes:
        title: What is measured.
        axis: What grows.
        sizes: Its values.
        milliseconds: What each costs.
    """

    title: str
    axis: str
    sizes: list[int]
    milliseconds: list[float]

    def __str__(self) -> str:
        slope, intercept = self.line
        return (
            f"{self.title}: {intercept:.1f} ms + {slope:.3f} ms per unit of {self.axis}, "
            f"at most {self.error:.1%} off"
        )

    @property
    def line(self) -> tuple[float, float]:
        """Slope and intercept of the straight line with the least relative errors."""
        weights = 1 / np.array(self.milliseconds)
        slope, intercept = np.polyfit(self.sizes, self.milliseconds, 1, w=weights)
        return float(slope), float(intercept)

    @property
    def error(self) -> float:
        """Largest distance of a measurement from the line, relative to the measurement."""
        slope, intercept = self.line
        return max(
            abs(slope * size + intercept - ms) / ms
            for size, ms in zip(self.sizes, self.milliseconds, strict=True)
        )


def measure() -> list[Curve]:
    """Time all curves."""
    return [
        curve(
            "Meta-SpikeFormer 15M, 224x224, B=1",
            "time steps T",
            {t: network_step(Network(batch=1, timesteps=t)) for t in (1, 2, 3, 4, 6, 8)},
        ),
        curve(
            "Meta-SpikeFormer 15M, T=4, B=1",
            "tokens N of the attention stages",
            {
                (size // STRIDE) ** 2: network_step(Network(batch=1, image_size=size))
                for size in (96, 128, 160, 192, 224, 256, 320)
            },
        ),
        curve(
            "Meta-SpikeFormer 15M, 224x224, T=4, B=1",
            "blocks of the first attention stage",
            {
                depth: network_step(Network(batch=1, depths=(1, 1, 2, depth, 2)))
                for depth in (1, 2, 4, 6, 9, 12)
            },
        ),
        curve(
            "SDSA-3, 256 channels, T=4, q (k^T v)",
            "tokens N",
            {side**2: attention_step(side) for side in (14, 20, 28, 34, 40, 48)},
        ),
        curve(
            "the same with (q k^T) v",
            "tokens N",
            {side**2: attention_step(side, tokens_first) for side in (14, 20, 28, 34, 40, 48)},
        ),
    ]


def curve(title: str, axis: str, steps: Mapping[int, Callable[[], object]]) -> Curve:
    """Time steps of several sizes in turn."""
    seconds = interleaved({str(size): step for size, step in steps.items()}, ROUNDS)
    return Curve(title, axis, [*steps], [1e3 * s for s in seconds.values()])


def network_step(network: Network) -> Callable[[], object]:
    """Return a step of training of a whole network."""
    return ours(network, "fast").step


def attention_step(
    side: int, product: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
) -> Callable[[], object]:
    """Return forward and backward of one attention branch on a map of `side**2` tokens."""
    torch.manual_seed(0)
    attention = SDSA3(256, 8)
    if product is not None:
        attention.product = product
    layer = accelerate(Trunk([dict(attn=Branch(LIF(), attention))]))
    x = torch.randn(4, 1, 256, side, side, requires_grad=True)
    return lambda: layer(x).sum().backward()


def tokens_first(q_TBhdN: Tensor, k_TBhdN: Tensor, v_TBhdN: Tensor) -> Tensor:
    """`(q k^T) v`, the order that softmax attention is bound to: `2 N^2 d`."""
    return v_TBhdN @ (k_TBhdN.mT @ q_TBhdN)


def plot(curves: list[Curve], path: Path) -> None:
    """Draw every curve with its line."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    for place, curve in enumerate(curves, start=1):
        axes = figure.add_subplot(2, 3, place)
        slope, intercept = curve.line
        ends = [0, max(curve.sizes)]
        axes.plot(ends, [intercept + slope * end for end in ends], color="#bbbbbb")
        axes.plot(curve.sizes, curve.milliseconds, "o", color="#4477aa", markersize=4)
        axes.set_title(curve.title, fontsize=8)
        axes.set_xlabel(curve.axis, fontsize=8)
        axes.set_ylabel("ms per step", fontsize=8)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def write(curves: list[Curve], path: Path) -> None:
    """Write the curves with their lines as JSON, and the plot beside."""
    lines = [
        dict(asdict(curve), slope=curve.line[0], intercept=curve.line[1], error=curve.error)
        for curve in curves
    ]
    write_json(path, lines)
    plot(curves, path.with_suffix(".svg"))
