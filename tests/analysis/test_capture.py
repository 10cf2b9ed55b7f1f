"""The captured graph: one node per neuron, the model's own names, the model's own numbers."""

import pytest
import torch
from torch import nn

from spikeformers.analysis import capture
from spikeformers.analysis.capture import op_name
from spikeformers.errors import InputError
from spikeformers.layers import fold
from spikeformers.models import create_model
from spikeformers.neurons import Neuron

pytestmark = pytest.mark.compile


def test_every_neuron_is_one_node_under_its_own_path() -> None:
    model = fold(create_model("meta_spikeformer_tiny").eval())
    graph = capture(model, torch.zeros(2, 1, 3, 32, 32))
    paths = [graph.path(node) for node in graph.nodes if op_name(node) == "spikeformers::lif"]
    assert sorted(paths) == sorted(p for p, m in model.named_modules() if isinstance(m, Neuron))
    convs = [graph.path(node) for node in graph.nodes if op_name(node) == "aten::conv2d"]
    assert "stages.0.blocks.0.mixer.fn.project" in convs


def test_running_the_graph_gives_the_outputs_of_the_model() -> None:
    torch.manual_seed(0)
    model = fold(create_model("meta_spikeformer_tiny").eval())
    x = torch.randn(2, 1, 3, 32, 32)
    *_, (_, outputs) = capture(model, torch.zeros_like(x)).run(x)
    assert torch.equal(outputs[0], model(x))


def test_inputs_know_what_they_are() -> None:
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.register_buffer("offset", torch.ones(3))

        def forward(self, x):
            x = x * self.weight + self.offset
            x += torch.tensor([1.0, 2.0, 3.0])
            return x.relu_()

    graph = capture(Model().eval(), torch.zeros(2, 3))
    assert sorted(graph.inputs.values()) == ["buffer", "constant", "image", "parameter"]
    # Functional: no node changes another one's value.
    names = {op_name(node) for node in graph.nodes}
    assert {"aten::add", "aten::relu"} <= names
    assert not any(name.endswith("_") for name in names)


def test_training_mode_and_other_examples_are_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout())
    with pytest.raises(InputError, match="training mode"):
        capture(model, torch.zeros(2, 3))
    with pytest.raises(InputError, match="example is list"):
        capture(model.eval(), [torch.zeros(2, 3)])
