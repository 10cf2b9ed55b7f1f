"""NIR files of a model: `export_nir(model, example, path)`, the whole or the islands of it.

NIR, the Neuromorphic Intermediate Representation, is what simulators and chips of other makers
read. It has convolutions, linear maps, average pools and spiking neurons, and no product of two
signals, no maximum and no integer neuron. A model that needs one is refused, or written as islands:
the largest pieces that NIR can express, one file each, and `index.json`, which says what lies
between them.

Reference:
    Pedersen et al., "Neuromorphic intermediate representation", Nature Communications 2024,
    arXiv:2311.14641.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from spikeformers.analysis import capture
from spikeformers.deploy._files import new_path
from spikeformers.errors import ExportError, InputError
from spikeformers.layers import fold

__all__ = ["NirExport", "export_nir"]


@dataclass(frozen=True)
class NirExport:
    """What was written.

    Attributes:
        path: The file, or the folder of islands.
        islands: NIR nodes in each file.
        between: What NIR cannot express: the reasons, each naming its layer.
    """

    path: str
    islands: tuple[int, ...]
    between: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as JSON can hold them."""
        return asdict(self)

    def __str__(self) -> str:
        """Write what a user wants to know of the files."""
        if not self.between:
            return f"{self.path}: {sum(self.islands)} NIR nodes"
        lines = [f"{self.path}: {len(self.islands)} islands of {sum(self.islands)} NIR nodes"]
        return "\n".join([*lines, *(f"  {reason}" for reason in self.between)])


def export_nir(
    model: nn.Module,
    example: Tensor,
    path: str | os.PathLike[str],
    *,
    partial: bool = False,
    dt: float = 1e-4,
) -> NirExport:
    """Write the folded model as NIR, whose nodes have the paths of our modules as names.

    Args:
        model: A float32 model in eval mode; it is not changed.
        example: An input; its channels, height and width count.
        path: A new file; with `partial` a new folder.
        partial: Write the pieces that NIR can express, and an index of what connects them.
        dt: Length of a time step in seconds; most readers assume the default.

    Shape:
        example `[T, B, C, H, W]`.

    Raises:
        InputError: If the model is in training mode, or `dt` is not positive.
        ExportError: If NIR cannot express the model, naming the layer, or if `path` exists.
        MissingExtraError: If nir is not installed.
    """
    from spikeformers.deploy import _nir_graph, _nir_islands

    if not dt > 0:
        raise InputError(f"dt={dt}: expected a positive number of seconds")
    blank = example.new_zeros(_nir_graph.TIMESTEPS, _nir_graph.BATCH, *example.shape[2:])
    build = _nir_graph.Builder(capture(fold(model), blank), dt)
    if build.refused and not partial:
        raise ExportError(f"{build.reasons()[0]}; --partial writes the rest")
    with new_path(path) as place:
        if not partial:
            _nir_islands.write_whole(build, place)
            return NirExport(str(path), (len(build.nodes),), ())
        islands = _nir_islands.write_islands(build, place)
    return NirExport(str(path), tuple(islands), tuple(build.reasons()))
