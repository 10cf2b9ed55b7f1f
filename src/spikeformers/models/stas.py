"""STAS: a spiking transformer in which every token stops when it has been thought about enough.

The tokens of an image are made once, so that all time steps work on the same thing. Then step after
step runs block after block, and behind each block a token adds a score to its account. When the
account is full the token halts, for good: deeper blocks and later steps do without it, and its last
value stands for it at the head.

Paper: Kang et al., "STAS: Spatio-Temporal Adaptive Computation Time for Spiking Transformers",
arXiv:2508.14138; the rule of halting is that of Yin et al., "A-ViT", CVPR 2022, arXiv:2112.07658.
There is no public code, and the paper leaves open how steps are merged, what halting means for
later steps, and which statistics the batch norms see. What stands here is our working definition.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from spikeformers.errors import ConfigError, InputError
from spikeformers.layers import Blocks, Chain, once
from spikeformers.models._backbone import Backbone, Stage
from spikeformers.models._registry import create_model, part, register
from spikeformers.models._some_tokens import (
    each,
    membranes_of_tokens,
    packed,
    run_gathered,
    run_masked,
    unpacked,
)
from spikeformers.neurons import Stateful
from spikeformers.streaming import bind
from spikeformers.types import Outputs


@part
class FirstStep(nn.Module):
    """I-SPS of a static image: make the tokens in one step from rest, and reuse them.

    Args:
        embed: The tokenizer.
    """

    def __init__(self, embed: nn.Module) -> None:
        super().__init__()
        self.embed = once(embed)

    def forward(self, x: Tensor) -> Tensor:
        """`[T, B, C, H, W]` with equal steps -> tokens, the same in all steps."""
        with bind(self.embed, None):
            return self.embed(x)


@part
class RunningMean(Stateful):
    """I-SPS of events: the tokens of a step are the mean over the steps until then.

    Args:
        embed: The tokenizer.
    """

    def __init__(self, embed: nn.Module) -> None:
        super().__init__()
        self.embed = embed

    def forward(self, x: Tensor) -> Tensor:
        """`[T, B, C, H, W]` -> tokens `[T, B, dim, H', W']`, each step blind to later ones."""
        tokens = self.embed(x)
        before = self.carried.before if self.carried else {}
        seen = before.get("steps", x.new_zeros(()))
        total = before.get("sum", tokens.new_zeros(tokens.shape[1:])) + tokens.cumsum(0)
        if self.carried:
            self.carried.after.update(steps=seen + len(x), sum=total[-1])
        steps = seen + torch.arange(1, len(x) + 1, dtype=x.dtype, device=x.device)
        return total / steps.view(-1, *[1] * (x.ndim - 1))


@register(
    "stas",
    variants={
        "spikformer_8_384": dict(backbone="spikformer_8_384"),
        "spikformer_8_512": dict(backbone="spikformer_8_512"),
        "spikformer_cifar_4_384": dict(backbone="spikformer_cifar_4_384", num_classes=10),
        "sdt_8_384": dict(backbone="sdt_8_384"),
        "sdt_8_512": dict(backbone="sdt_8_512"),
        "sdt_cifar_2_512": dict(backbone="sdt_cifar_2_512", num_classes=10),
        "tiny": dict(
            backbone="spikformer_tiny", integrate=RunningMean, num_classes=10, offset=-2.0
        ),
    },
)
def stas(
    *,
    backbone: str,
    in_channels: int = 3,
    num_classes: int | None = 1000,
    integrate: Callable[[nn.Module], nn.Module] = FirstStep,
    sharpness: float = 1.0,
    offset: float = -3.0,
    margin: float = 0.01,
) -> "Halting":
    """Build a registered Spikformer or SDT whose tokens halt.

    Args:
        backbone: Its registered name.
        in_channels: Channels of the input.
        num_classes: Classes; `None` gives a headless backbone.
        integrate: See `Halting`, as all that follows.
        sharpness: Factor of the score.
        offset: Offset of the score.
        margin: How far below 1 an account is full.

    Raises:
        ConfigError: If the backbone's blocks mix tokens other than by attention.
    """
    inner = create_model(backbone, in_channels=in_channels, num_classes=num_classes)
    return Halting(inner, integrate, sharpness, offset, margin)


class Halting(Stateful, Backbone):
    """A backbone whose tokens halt one by one, over blocks and time steps.

    Behind block `l` of step `t` an executed token adds `h = sigmoid(sharpness x_1 + offset)` to its
    account, where `x_1` is the first channel of its residual stream. From `1 - margin` on it halts.

    In training, halted tokens are masked and the batch norms see the executed tokens of one step;
    the output is `Outputs(scores, {"ponder": cost})`. In eval mode the executed tokens of each
    sample are gathered, and only they are computed. Both give the same numbers.

    Args:
        backbone: One stage of blocks in which tokens meet in attention only. Its parts are reused.
        integrate: Makes one map of tokens of all steps: `FirstStep` for images, `RunningMean` for
            events.
        sharpness: Factor of the score.
        offset: Offset of the score; it says how long a token runs that knows nothing.
        margin: How far below 1 an account is full.

    Shape:
        `[T, B, C, H, W]` -> `[T, B, K]`.

    Raises:
        ConfigError: If the backbone has several stages, or its blocks mix tokens in other ways.
        InputError: When compiled or exported.

    Deviations:
        All of it is our working definition, see the top of the file. A halted token never runs
        again; the head reads the last value of every token, at every step.

    Reference:
        Kang et al., arXiv:2508.14138; Yin et al., CVPR 2022, arXiv:2112.07658, eq. 3 to 10.
    """

    has_fixed_graph = False

    def __init__(
        self,
        backbone: Backbone,
        integrate: Callable[[nn.Module], nn.Module] = FirstStep,
        sharpness: float = 1.0,
        offset: float = -3.0,
        margin: float = 0.01,
    ) -> None:
        if len(backbone.stages) != 1:
            raise ConfigError(f"backbone has {len(backbone.stages)} stages: tokens halt within one")
        if not 0 < margin < 1:
            raise ConfigError(f"margin={margin}: expected a number between 0 and 1")
        inner = cast(Stage, backbone.stages[0])
        stream = cast(type[Blocks], type(inner.blocks))
        first, *others = (dict(block.named_children()) for block in inner.blocks.children())
        # A position convolution at the front of the stream belongs to the tokenizer.
        front = {
            name: part
            for name, part in first.items()
            if membranes_of_tokens(stream([{name: part}]), inner.channels) is None
        }
        rest = {name: part for name, part in first.items() if name not in front}
        blocks = stream([rest, *others])
        membranes = [membranes_of_tokens(block, inner.channels) for block in each(blocks)]
        self_contained = [names for names in membranes if names is not None]
        if not rest or len(self_contained) < len(membranes):
            raise ConfigError("the backbone's blocks mix neighbours by more than attention")
        embed = Chain(inner.embed, stream([front])) if front else inner.embed
        stage = Stage(integrate(embed), blocks, inner.channels, inner.stride)
        super().__init__([stage], backbone.head, backbone.in_channels)
        self.per_token = self_contained
        self.sharpness = sharpness
        self.offset = offset
        self.margin = margin

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the map of the tokens' last values, `[T, B, dim, H', W']`."""
        return [self._think(x)[0]]

    def forward(self, x: Tensor) -> Tensor | Outputs:
        """Return per-step scores, in training with the mean cost of a token, `ponder`."""
        y, executed, rest = self._think(x)
        scores = y if self.head is None else self.head(y)
        if not self.training:
            return scores
        return Outputs(scores, {"ponder": (executed.sum((0, 1)) + rest).mean()})

    def executed(self, x: Tensor) -> Tensor:
        """Return which tokens run in which step and block, `[T, L, B, H', W']` of 0 and 1."""
        return self._think(x)[1]

    def _think(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tokens `[T, B, C, H', W']`, the executed ones, and what was left of each.

        What is left, `[B, H', W']`, is what the account lacked before its token ran last: the part
        of the cost that has a gradient.
        """
        if torch.compiler.is_compiling():
            raise InputError("tokens that halt have no fixed graph: compile or export the backbone")
        self._check(x)
        stage = cast(Stage, self.stages[0])
        tokens = stage.embed(x)
        size = tokens.shape[3:]
        tokens = tokens.flatten(3)[..., None]  # [T, B, C, N, 1]
        before = self.carried.before if self.carried else {}
        blocks = each(cast(Blocks, stage.blocks))
        states = [unpacked(before, i) for i in range(len(blocks))]
        y = before.get("tokens", tokens[0])
        account = before.get("account", torch.zeros_like(y[:, :1]))
        rest = torch.ones_like(account)
        run = run_masked if self.training else run_gathered
        thoughts, executed = [], []
        for z in tokens:
            y = torch.where(account < 1 - self.margin, z, y)
            for i, block in enumerate(blocks):
                runs = account < 1 - self.margin
                if runs.any():
                    y, states[i] = run(block, y, runs, states[i], self.per_token[i])
                score = torch.sigmoid(self.sharpness * y[:, :1] + self.offset)
                rest = torch.where(runs, 1 - account, rest)
                account = account + score * runs
                executed.append(runs)
            thoughts.append(y)
        if self.carried:
            self.carried.after.update({"tokens": y, "account": account})
            for i, state in enumerate(states):
                self.carried.after.update(packed(state, i))
        maps = torch.stack(executed).to(x.dtype)[:, :, 0, :, 0].unflatten(0, (len(x), -1))
        return (
            torch.stack(thoughts).squeeze(-1).unflatten(-1, size),
            maps.unflatten(-1, size),
            rest[:, 0, :, 0].unflatten(-1, size),
        )
