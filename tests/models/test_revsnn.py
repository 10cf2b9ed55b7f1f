"""RevSFormer and RevSResNet: reversible in training, like any other model elsewhere."""

import pytest
import torch

import spikeformers as sf
from spikeformers.errors import ConfigError, InputError
from spikeformers.layers import BatchNorm, Branch, ReversibleTrunk, TwiceCountingTrunk
from spikeformers.models import Backbone
from tests.golden import Case, cases
from tests.helpers import assert_same, enliven, gradients, randn, statistics

TINIES = ["revsformer_tiny", "revsresnet_tiny"]
CASES = {case.name.partition("__")[2]: case for case in cases("revsnn")}


def trunks(model: Backbone) -> list[ReversibleTrunk]:
    return [m for m in model.modules() if isinstance(m, ReversibleTrunk)]


def kept_by(model: Backbone, depth: int) -> int:
    """Return how many numbers autograd keeps inside the trunks, per number that they return."""
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    total = 0
    for trunk in trunks(model):
        assert len(trunk) == depth
        part = next(trunk.parts())
        assert isinstance(part, Branch)
        x = randn(2, 1, 2 * next(part.fn.parameters()).shape[1], 8, 8).requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trunk(x)
        total += x.numel()
    return sum(kept) // total


@pytest.mark.parametrize("depth", [1, 4])
def test_the_blocks_keep_nothing_but_their_result(depth: int) -> None:
    former = sf.create_model("revsformer_tiny", depth=depth).double()
    resnet = sf.create_model("revsresnet_tiny", depths=(depth, depth)).double()
    assert kept_by(resnet, depth) == 1
    assert kept_by(former, depth) == 1
    assert kept_by(resnet.eval(), depth) > 4 * depth


@pytest.mark.parametrize("name", TINIES)
def test_training_equals_training_that_keeps_everything(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, results = randn(3, 2, 3, 32, 48, seed=1), []
    for plain in (False, True):
        if plain:
            monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        model = enliven(sf.create_model(name))
        y = model(x)
        y.square().sum().backward()
        results.append((y, gradients(model), statistics(model)))
    for actual, expected in zip(*results, strict=True):
        assert_same(actual, expected)


@pytest.mark.parametrize("name", TINIES)
def test_streams_in_any_chunks(name: str) -> None:
    model, x = enliven(sf.create_model(name)).eval(), randn(5, 2, 3, 32, 32, seed=1)
    stream = sf.Stream(model)
    with torch.no_grad():
        chunks = [stream(chunk) for chunk in x.split([1, 3, 1])]
        assert_same(torch.cat(chunks), model(x))


@pytest.mark.parametrize("case", [CASES["former_t4"], CASES["sresnet_t4"]], ids=lambda c: c.name)
@pytest.mark.parametrize("corrected", [False, True])
def test_official_weights_train_on_with_statistics_that_count_twice(
    case: Case, corrected: bool
) -> None:
    model = sf.from_official(case.state(), case.source, corrected, **case.facts["kwargs"])
    assert {type(t) for t in trunks(model)} == {
        ReversibleTrunk if corrected else TwiceCountingTrunk
    }
    inside = {id(m) for t in trunks(model) for m in t.modules()}
    for module in model.modules():
        if isinstance(module, BatchNorm):
            twice = id(module) in inside and not corrected
            assert module.momentum == pytest.approx(0.19 if twice else 0.1)


def test_static_images_pass_the_stem_once() -> None:
    model = enliven(sf.create_model("revsresnet_21", dims=(4, 4, 4, 4))).eval()
    image = randn(2, 3, 16, 16, seed=1)
    shapes = []
    model.stages[0].embed.stem.register_forward_hook(lambda _m, _i, y: shapes.append(y.shape))
    model(image.expand(4, *image.shape))
    assert shapes == [(1, 2, 8, 16, 16)]
    with pytest.raises(InputError, match="the time steps of x differ"):
        model(randn(4, 2, 3, 16, 16, seed=1))
    events = enliven(sf.create_model("revsresnet_24")).eval()
    assert events(randn(4, 1, 2, 32, 32, seed=1)).shape == (4, 1, 10)


def test_dims_and_depths_of_different_length_are_named() -> None:
    with pytest.raises(ConfigError, match="one entry per stage, got 2 and 1"):
        sf.create_model("revsresnet_tiny", depths=(1,))
