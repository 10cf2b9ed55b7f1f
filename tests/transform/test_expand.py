"""The binary network equals the integer one, and its synapses see spikes alone."""

import pytest
import torch
from torch import Tensor, nn

import spikeformers as sf
from spikeformers.analysis import audit
from spikeformers.errors import InputError
from spikeformers.layers import SSA, Chain, ConvBN, PerStep
from spikeformers.neurons import ILIF, LIF, Neuron
from spikeformers.streaming import advance
from spikeformers.transform import expand
from spikeformers.transform.expand import Burst, OverWindow
from tests.helpers import enliven, randn, spikes_of

INTEGER = ["sdt_v3_tiny", "sdt_v3_large_tiny", "spike_yolo_tiny"]


def lively(name: str) -> nn.Module:
    return enliven(sf.create_model(name)).eval()


def as_list(y: Tensor | list[Tensor]) -> list[Tensor]:
    return y if isinstance(y, list) else [y]


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", INTEGER)
def test_equals_the_integer_model(name: str, steps: int) -> None:
    model, x = lively(name), randn(steps, 2, 3, 48, 64, seed=1)
    expanded = expand(model, 4)
    with torch.no_grad():
        for ours, expected in zip(as_list(expanded(x)), as_list(model(x)), strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-9, rtol=0)
            assert (expected[:, 0] - expected[:, 1]).abs().max() > 1e-3, "samples differ"
        integers = spikes_of(model, lambda: model(x))
        spikes = spikes_of(expanded, lambda: expanded(x))
    assert len(integers) == len(spikes) > 5
    for window, whole in zip(spikes.values(), integers.values(), strict=True):
        assert window.unique().numel() <= 2, "binary"
        assert torch.equal(window.unflatten(0, (-1, 4)).sum(1), whole)
    assert max(whole.unique().numel() for whole in integers.values()) > 2, "integers were at work"


@pytest.mark.compile
@pytest.mark.parametrize("name", INTEGER)
def test_every_synaptic_operand_is_binary(name: str) -> None:
    expanded = expand(lively(name).float(), 4)
    report = audit(expanded.sub_steps, torch.zeros(4, 1, 3, 64, 64))
    synapses = [row for row in report.rows if row.op in ("conv1d", "conv2d", "linear", "matmul")]
    real = {"head.linear"} if name == "sdt_v3_large_tiny" else set()  # it reads the membrane
    others = [row for row in synapses if row.path not in real]
    assert [row.verdict for row in others] == ["encode"] + ["AC"] * (len(others) - 1)
    assert all("{0,1}" in " ".join(row.operands) for row in others[1:])


@pytest.mark.parametrize("name", INTEGER)
def test_only_the_listed_operators_see_a_sum(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    expanded = expand(lively(name), 4)
    kinds = (Neuron, OverWindow, SSA)
    modules = dict(expanded.sub_steps.named_modules())
    assert set(expanded.window_operators) == {p for p, m in modules.items() if isinstance(m, kinds)}
    assert capsys.readouterr().out.strip() == expanded.summary()
    # All others answer each sub-step as if it were the only one.
    calls: dict[str, tuple[Tensor, Tensor]] = {}
    for path, module in modules.items():
        if not any(listed.startswith(path) for listed in expanded.window_operators):
            module.register_forward_hook(
                lambda _m, a, y, path=path: calls.update({path: (a[0], y)})
            )
    with torch.no_grad():
        expanded(randn(1, 2, 3, 48, 64, seed=2))
        for path, (x, y) in list(calls.items()):
            torch.testing.assert_close(modules[path](x[1:2]), y[1:2], msg=path)
    assert len(calls) > 10


@pytest.mark.parametrize("name", INTEGER)
def test_biases_add_up_over_a_window(name: str) -> None:
    model = lively(name)
    whole, parts = (dict(m.named_modules()) for m in (sf.fold(model), expand(model, 4).sub_steps))
    biased = [path for path, m in whole.items() if getattr(m, "bias", None) is not None]
    assert len(biased) > 10
    for path in biased:
        torch.testing.assert_close(4 * parts[path].bias, whole[path].bias, msg=path)


def test_streams_in_windows() -> None:
    model, x = lively("spike_yolo_tiny"), randn(3, 1, 3, 64, 64, seed=3)
    expanded = expand(model, 4)
    with torch.no_grad():
        whole = expanded(x)
        first, state = advance(expanded, x[:1])
        rest, _ = advance(expanded, x[1:], state)
    for a, b, expected in zip(first, rest, whole, strict=True):
        torch.testing.assert_close(torch.cat([a, b]), expected, atol=1e-9, rtol=0)


def test_the_decay_acts_once_per_window() -> None:
    neuron = ILIF(levels=3, decay=0.5)
    x = randn(5, 40, seed=4) * 2
    spikes, v = Burst(neuron).fire(x.repeat_interleave(3, 0) / 3)
    integers, expected = neuron.fire(x)
    assert torch.equal(spikes.unflatten(0, (-1, 3)).sum(1), integers)
    torch.testing.assert_close(v, expected)


class Squared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (LIF(), r"1 is LIF\(tau=2.0.*\): expected an integer neuron with levels=4"),
        (ILIF(levels=2), r"1 is ILIF\(levels=2.*expected an integer neuron with levels=4"),
        (Squared(), r"1 \(Squared\) is not known to be additive"),
        (PerStep(nn.LPPool2d(2, 2)), r"1\.module \(LPPool2d\) is not known to be additive"),
    ],
    ids=["binary", "other levels", "not additive", "a pool that is not linear"],
)
def test_refuses_by_name(part: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=message):
        expand(Chain(ConvBN(3, 4, 3), part).eval(), 4)


def test_needs_eval_mode() -> None:
    with pytest.raises(InputError, match=r"call model\.eval"):
        expand(sf.create_model("sdt_v3_tiny"), 4)
