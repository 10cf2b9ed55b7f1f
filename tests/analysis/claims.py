"""Do observed tensors keep what the interpretation claims of them?"""

from collections.abc import Iterator

import torch
from torch import Tensor

from spikeformers.analysis.alphabet import Facts, Origin, Value
from spikeformers.analysis.capture import Graph
from spikeformers.analysis.observe import stray


def broken_claims(graph: Graph, facts: Facts, x: Tensor, y: Tensor) -> Iterator[str]:
    """Run a graph on two inputs and their midpoint; yield the name of every node that lied."""
    runs = [graph.run(image) for image in (x, y, (x + y) / 2)]
    for (node, a), (_, b), (_, middle) in zip(*runs, strict=True):
        claims = facts.values.get(node)
        several = zip(claims, a, strict=True) if isinstance(claims, tuple) else [(claims, a)]
        for claim, seen in several:
            is_claim = isinstance(claim, Value) and isinstance(seen, Tensor)
            if is_claim and claim.alphabet is not None and stray(claim.alphabet, seen) is not None:
                yield f"{node.name} is not in {claim.alphabet}"
        if not isinstance(claims, Value) or not isinstance(a, Tensor):
            continue
        if claims.origin is Origin.CONSTANT and not torch.equal(a, b):
            yield f"{node.name} is not constant"
        if claims.origin is Origin.IMAGE and not torch.allclose(
            middle, (a + b) / 2, atol=1e-4 * max(1.0, float(a.abs().max()))
        ):
            yield f"{node.name} is not affine in the image"
