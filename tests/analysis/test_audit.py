"""What the audit says of models whose answer is known."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spikeformers.analysis import Report, Row, audit
from spikeformers.errors import InputError
from spikeformers.layers import (
    SDSA1,
    SDSA2,
    SDSA3,
    Chain,
    ClassificationHead,
    Conv,
    ConvBN,
    DistillationHead,
    PerStep,
    RepConv,
    SpikeSepConv,
    once,
    sew,
)
from spikeformers.models import Backbone, create_model, list_models
from spikeformers.models.meta_spikeformer import sew_shortcut
from spikeformers.neurons import DSRIF, IF, LIF, PLIF, AcrossBatch, LearnedThresholdLIF
from spikeformers.transform import expand
from spikeformers.types import ANALOG, BINARY, Alphabet

pytestmark = pytest.mark.compile

X = torch.zeros(2, 2, 3, 8, 8)
VERDICTS = Path(__file__).parent / "verdicts"


class Formula(nn.Module):
    """A function as a module, with a gain per channel and a learned scalar."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.gain = nn.Parameter(torch.ones(4, 1, 1))
        self.scalar = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def stem() -> Chain:
    return Chain(conv=ConvBN(3, 4, 3), neuron=LIF())


def after_spikes(*parts: nn.Module) -> Report:
    return audit(Chain(stem(), *parts), X)


def found(report: Report) -> list[str]:
    return [row.verdict for row in report.rows]


def row_at(report: Report, path: str) -> Row:
    (row,) = (row for row in report.rows if row.path == path)
    return row


def image_of(model: Backbone) -> Tensor:
    return torch.zeros(2, 1, 3, *(model.image_size or (32, 32)))


@pytest.mark.parametrize("name", list_models("*_tiny"))
def test_every_family_reads_as_reviewed(name) -> None:
    """After a change on purpose, write the report into the file, and read it."""
    model = create_model(name)
    if not model.has_fixed_graph:
        with pytest.raises(InputError, match="no fixed graph"):
            audit(model, image_of(model))
        return
    assert f"{audit(model, image_of(model))}\n" == (VERDICTS / f"{name}.txt").read_text()


def test_the_binary_network_of_an_integer_one_reads_as_reviewed() -> None:
    expanded = expand(create_model("sdt_v3_tiny").eval(), 4)
    report = audit(expanded.sub_steps, torch.zeros(4, 1, 3, 32, 32))
    assert f"{report}\n" == (VERDICTS / "sdt_v3_tiny_expanded.txt").read_text()


@pytest.mark.parametrize(
    ("alphabet", "verdict", "overall"),
    [
        (ANALOG, "encode", "strictly spike-driven"),
        (BINARY, "AC", "strictly spike-driven"),
        (Alphabet(0, 9), "ACx", "spike-driven"),
    ],
    ids=str,
)
def test_an_input_of_events_is_no_encoding(alphabet, verdict, overall) -> None:
    report = audit(Chain(stem(), ConvBN(4, 4, 3)), X, image=alphabet)
    assert found(report) == [verdict, "AC"]
    assert report.verdict == overall


def test_two_layers_on_events_need_a_neuron_between_them() -> None:
    model = Chain(ConvBN(3, 4, 3), ConvBN(4, 4, 3), LIF())
    assert found(audit(model, X)) == ["encode", "encode"]
    assert found(audit(model, X, image=BINARY)) == ["AC", "MAC"]


@pytest.mark.parametrize("value", [0.5, 2.0, -1.0])
def test_an_example_that_is_not_what_it_claims_is_refused(value) -> None:
    with pytest.raises(InputError, match=rf"the example holds {value:g}, outside \{{0,1\}}"):
        audit(stem(), X + value, image=BINARY)


def test_the_model_itself_is_left_alone() -> None:
    model = Chain(stem(), RepConv(4, 4))
    names = list(model.state_dict())
    audit(model, X)
    assert model.training
    assert list(model.state_dict()) == names


def test_a_report_is_json() -> None:
    report = after_spikes(ConvBN(4, 4, 3))
    facts = json.loads(json.dumps(report.as_dict()))
    assert facts["verdict"] == "strictly spike-driven"
    assert facts["rows"][1] == {
        "path": "1",
        "op": "conv2d",
        "operands": ["{0,1}", "weights"],
        "verdict": "AC",
        "reason": "one addition per spike",
        "node": facts["rows"][1]["node"],
    }


def test_a_relu_network_is_not_spike_driven() -> None:
    report = audit(Chain(ConvBN(3, 4, 3), nn.ReLU(), ConvBN(4, 4, 3)), X)
    assert found(report) == ["encode", "MAC"]
    assert report.neurons == 0
    assert report.verdict == "not spike-driven"
    assert report.rows[1].reason == "no neuron stands between 0 (conv2d) and it"


def test_an_affine_network_without_neurons_is_not_spike_driven() -> None:
    report = audit(ConvBN(3, 4, 3), X)
    assert found(report) == ["encode"]
    assert report.verdict == "not spike-driven"


def test_a_deep_linear_stem_stays_encode() -> None:
    average = PerStep(nn.AvgPool2d(2))
    parts = [ConvBN(3, 4, 3), Conv(4, 4, 1), average, ConvBN(4, 4, 3), LIF(), ConvBN(4, 4, 3)]
    assert found(audit(Chain(once(Chain(*parts[:4])), *parts[4:]), X)) == [*["encode"] * 3, "AC"]


@pytest.mark.parametrize("bend", [nn.ReLU(), PerStep(nn.MaxPool2d(2))])
def test_a_nonlinearity_ends_the_encoding(bend) -> None:
    assert found(audit(Chain(ConvBN(3, 4, 3), bend, ConvBN(4, 4, 3), LIF()), X)) == [
        "encode",
        "MAC",
    ]


def test_the_image_times_itself_is_not_encoding() -> None:
    assert found(audit(Chain(Formula(lambda _, x: x * x), ConvBN(3, 4, 3), LIF()), X)) == [
        "MAC",
        "MAC",
    ]


def test_max_pooling_keeps_spikes() -> None:
    report = after_spikes(PerStep(nn.MaxPool2d(3, 2, 1)), ConvBN(4, 4, 3))
    assert found(report) == ["encode", "AC"]
    assert report.verdict == "strictly spike-driven"


def test_average_pooling_gives_integers_and_its_factor_merges() -> None:
    report = after_spikes(PerStep(nn.AvgPool2d(2)), ConvBN(4, 4, 3))
    assert found(report) == ["encode", "ACx"]
    assert report.rows[1].operands == ("0.25*{0..4}", "weights")
    assert report.verdict == "spike-driven"
    assert report.notes == ("1.module: the factor 0.25 of avg_pool2d merges into the weights of 2",)


@pytest.mark.parametrize(
    ("neuron", "operand"), [(LIF(), "0.111111*{0..9}"), (DSRIF(), "w*{0..9}")], ids=["LIF", "DSR"]
)
def test_zeros_around_an_average_are_no_other_value(neuron, operand) -> None:
    pool = PerStep(nn.AvgPool2d(3, 2, padding=1))
    report = audit(Chain(ConvBN(3, 4, 3), neuron, pool, ConvBN(4, 4, 3)), X)
    assert found(report) == ["encode", "ACx"]
    assert report.rows[1].operands == (operand, "weights")


@pytest.mark.parametrize(
    ("pool", "op"),
    [
        (nn.AdaptiveAvgPool2d(3), "aten::adaptive_avg_pool2d"),
        (nn.AvgPool2d(3, 2, padding=1, count_include_pad=False), "aten::avg_pool2d"),
        (nn.AvgPool2d(3, ceil_mode=True), "aten::avg_pool2d"),
    ],
    ids=["uneven", "without the padding", "beyond the border"],
)
def test_an_average_over_windows_of_several_sizes_is_unknown(pool, op) -> None:
    report = after_spikes(PerStep(pool))
    assert found(report) == ["encode", "MAC"]
    assert report.unknown == (op,)


def test_unknown_operators_are_listed_and_taken_for_multiplications() -> None:
    report = after_spikes(nn.GELU(), ConvBN(4, 4, 3))
    assert found(report) == ["encode", "MAC", "MAC"]
    assert report.unknown == ("aten::gelu",)
    assert report.rows[2].reason == "no neuron stands between 1 (gelu) and it"
    assert "unknown operator: aten::gelu\n" in str(report)


def test_softmax_attention_multiplies() -> None:
    report = after_spikes(Formula(lambda _, s: torch.softmax(s @ s.mT, -1) @ s))
    assert [(row.op, row.verdict) for row in report.rows] == [
        ("conv2d", "encode"),
        ("matmul", "AC"),
        ("softmax", "MAC"),
        ("matmul", "MAC"),
    ]


@pytest.mark.parametrize("neuron", [IF, PLIF, LearnedThresholdLIF])
def test_every_neuron_gives_spikes(neuron) -> None:
    report = audit(Chain(ConvBN(3, 4, 3), neuron(), ConvBN(4, 4, 3)), X)
    assert found(report) == ["encode", "AC"]
    assert report.verdict == "strictly spike-driven"


@pytest.mark.parametrize(
    ("connect", "join_and_next"),
    [("and", ["mask", "AC"]), ("iand", ["mask", "AC"]), ("add", ["ACx"])],
)
def test_sew_shortcuts(connect, join_and_next) -> None:
    block = sew(Chain(conv=ConvBN(4, 4, 3), neuron=LIF()), connect)
    assert found(after_spikes(block, ConvBN(4, 4, 3))) == ["encode", "AC", *join_and_next]


def test_a_ternary_operand_costs_signed_additions() -> None:
    report = after_spikes(Formula(lambda _, s: s - s.roll(1, 3)), ConvBN(4, 4, 3))
    row = report.rows[1]
    assert (row.operands[0], row.verdict) == ("{-1..1}", "AC")
    assert row.reason == "one signed addition per spike"


@pytest.mark.parametrize(
    ("formula", "verdict"),
    [
        (lambda _, s: (s + s) * (s + s), "MACint"),
        (lambda _, s: (s + s) @ (s + s).mT, "MACint"),
        (lambda _, s: (s + s) @ s.mT, "AC"),
        (lambda _, s: torch.einsum("tbcij,tbdij->tbcd", s, s + s), "AC"),
        (lambda _, s: torch.einsum("...ij,...jk", s + s, s + s), "MACint"),
        (lambda self, s: torch.einsum("tbchw,cij->tbhw", s + s, self.gain), "ACx"),
        (lambda _, s: torch.baddbmm(s[0, 0], s[0, 0], s[1, 0]), "AC"),
        (lambda self, s: torch.addmm(self.gain[:, 0], s[0, 0, 0, :4], s[0, 0, 1]), "AC"),
        (lambda self, s: s * self.gain, "mask"),
        (lambda self, s: (s + s) / self.gain, "ACx"),
    ],
)
def test_products_of_two_signals(formula, verdict) -> None:
    assert found(after_spikes(Formula(formula))) == ["encode", verdict]


def test_a_learned_gate_drops_spikes_and_multiplies_membranes() -> None:
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = ConvBN(4, 4, 1)

        def forward(self, x):
            return x * self.conv(x).sigmoid()

    on_spikes = after_spikes(Gate())
    assert [(row.op, row.verdict) for row in on_spikes.rows[1:]] == [
        ("conv2d", "AC"),
        ("sigmoid", "MAC"),
        ("mul", "mask"),
    ]
    on_membrane = after_spikes(ConvBN(4, 4, 3), Gate())
    assert [row.verdict for row in on_membrane.rows] == ["encode", "AC", "MAC", "MAC", "MAC"]
    assert on_spikes.unknown == on_membrane.unknown == ("aten::sigmoid",)


def test_layer_scale_on_the_membrane_multiplies() -> None:
    report = after_spikes(ConvBN(4, 4, 3), Formula(lambda self, x: x * self.gain), LIF())
    assert found(report) == ["encode", "AC", "MAC"]


def test_a_learned_scalar_on_spikes_leaves_additions() -> None:
    report = after_spikes(Formula(lambda self, s: self.scalar * s), ConvBN(4, 4, 3))
    assert [row.operands[0] for row in report.rows] == ["image", "{0,1}", "w*{0,1}"]
    assert found(report) == ["encode", "mask", "AC"]


@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_right_behind_a_convolution_merges_into_it(affine) -> None:
    report = after_spikes(ConvBN(4, 4, 3), PerStep(nn.BatchNorm2d(4, affine=affine)), LIF())
    assert found(report) == ["encode", "AC"]
    assert report.notes == ("2.module: the norm merges into the weights of 1",)


def test_a_norm_over_the_outputs_of_a_linear_map_merges_into_it() -> None:
    def tokens(_, s: Tensor) -> Tensor:
        return s.flatten(3).mT

    parts = Formula(tokens), nn.Linear(4, 6), Formula(lambda _, y: y.flatten(0, 2))
    assert found(after_spikes(*parts, nn.BatchNorm1d(6))) == ["encode", "AC"]


@pytest.mark.parametrize(
    "parts",
    [
        (ConvBN(4, 4, 3), nn.ReLU(), PerStep(nn.BatchNorm2d(4))),
        (ConvBN(4, 8, 3), PerStep(nn.PixelShuffle(2)), PerStep(nn.BatchNorm2d(2))),
        (nn.Linear(8, 8), PerStep(nn.BatchNorm2d(4))),
        (Formula(lambda _, s: s @ s.mT), PerStep(nn.BatchNorm2d(4))),
    ],
    ids=["behind a bend", "of other channels", "of rows", "behind a product of signals"],
)
def test_a_norm_that_merges_into_nothing_multiplies_the_membrane(parts) -> None:
    assert found(after_spikes(*parts, LIF()))[-1] in {"MAC", "ACx"}


def test_a_norm_of_a_sum_that_others_read_multiplies() -> None:
    class Read(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = ConvBN(4, 4, 3), PerStep(nn.BatchNorm2d(4))
            self.neuron = LIF()

        def forward(self, x):
            y = self.conv(x)
            return self.neuron(self.norm(y) + y)

    assert found(after_spikes(Read())) == ["encode", "AC", "MAC"]


@pytest.mark.parametrize(
    ("neuron", "verdicts"),
    [
        (LIF(), []),
        (LIF(v_reset=None), []),
        (PLIF(), []),
        (AcrossBatch(IF()), []),
        (LIF(v_reset=-0.5), ["MAC"]),
    ],
)
def test_a_factor_merges_into_a_threshold_where_the_rest_is_zero(neuron, verdicts) -> None:
    # Read twice, so that the factor cannot merge into the convolution before it.
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.neuron = ConvBN(3, 4, 3), neuron
            self.first = LIF()

        def forward(self, x):
            membrane = F.relu(self.conv(x))
            return self.first(membrane) + self.neuron(membrane.mean((-2, -1), keepdim=True))

    report = audit(Model(), X)
    assert found(report) == ["encode", *verdicts]
    merged = "(model): the factor 0.015625 of mean merges into the threshold of neuron"
    assert [note for note in report.notes if "merges" in note] == ([] if verdicts else [merged])


def test_a_spike_as_high_as_its_threshold_hands_a_factor_on() -> None:
    def mean(_, x: Tensor) -> Tensor:
        return F.relu(x).mean((-2, -1), keepdim=True)

    parts = ConvBN(4, 4, 3), Formula(mean), DSRIF()
    read_by_weights = after_spikes(*parts, ConvBN(4, 4, 1))
    assert found(read_by_weights) == ["encode", "AC", "AC"]
    assert read_by_weights.notes == (
        "2: the factor 0.015625 of mean merges into the threshold of 3 and the weights of 4",
    )
    assert found(after_spikes(*parts)) == ["encode", "AC", "MAC"]


def test_a_factor_on_a_membrane_that_others_read_stays() -> None:
    def halve_the_stream(_, x: Tensor) -> Tensor:
        return 0.5 * x + F.relu(x)

    report = after_spikes(ConvBN(4, 4, 3), Formula(halve_the_stream), LIF())
    assert found(report) == ["encode", "AC", "MAC"]
    assert report.rows[2].operands == ("analog", "0.5")


def test_attention_on_spikes() -> None:
    masks = after_spikes(SDSA1(4, 2))
    assert [row.verdict for row in masks.rows if row.op == "mul"] == ["mask", "mask"]
    assert [row.verdict for row in after_spikes(SDSA2(4, 2)).rows if row.op == "mul"] == ["mask"]
    scaled = after_spikes(SDSA3(4, 2, scale=0.3))
    assert {r.verdict for r in scaled.rows} == {"encode", "AC"}
    assert scaled.notes == ("1: the factor 0.3 of mul merges into the threshold of 1.neuron",)
    assert scaled.verdict == "strictly spike-driven"


def test_the_average_of_two_heads_merges_into_their_weights() -> None:
    report = after_spikes(DistillationHead(4, 10))
    assert found(report) == ["encode", "AC", "AC"]
    assert report.notes[-1] == (
        "1: the factor 0.5 of div merges into the weights of 1.linear "
        "and the weights of 1.linear_kd"
    )


def test_spikes_that_add_make_meta_spikeformer_count() -> None:
    model = create_model("meta_spikeformer_tiny", shortcut=sew_shortcut)
    report = audit(model, torch.zeros(1, 1, 3, 32, 32))
    assert row_at(report, "stages.0.blocks.0.mlp.fn.fn.expand").verdict == "ACx"
    assert row_at(report, "stages.1.embed.conv").operands == ("{0..3}", "weights")
    assert row_at(report, "stages.0.blocks.0.mixer.fn.fn.project").verdict == "MAC"


def test_a_neuron_inside_the_separable_convolution_makes_meta_spikeformer_spike_driven() -> None:
    model = create_model("meta_spikeformer_tiny", token_mixer=SpikeSepConv)
    report = audit(model, image_of(model))
    assert row_at(report, "stages.0.blocks.0.mixer.fn.project").verdict == "AC"
    assert report.verdict == "strictly spike-driven"


def test_a_neuron_across_the_batch_is_named() -> None:
    report = audit(Chain(ConvBN(3, 4, 3), AcrossBatch(LIF()), ConvBN(4, 4, 3)), X)
    assert found(report) == ["encode", "AC"]
    assert report.notes == (
        "1 integrates across the batch as if it were time: samples influence each other",
    )


def test_a_classifier_that_reads_a_membrane_says_so() -> None:
    class Membrane(nn.Module):
        def __init__(self):
            super().__init__()
            self.neuron, self.linear = LIF(), nn.Linear(8, 2)

        def forward(self, x):
            return self.linear(self.neuron.fire(x)[1])

    report = after_spikes(Membrane())
    assert found(report) == ["encode", "MAC"]
    # `fire` was called from outside the neuron, so the node runs in the module that called it.
    assert report.rows[1].reason == "it reads the membrane of 1"


def test_an_operator_meeting_two_scales_says_so() -> None:
    report = after_spikes(Formula(lambda _, s: s + 0.3 * s), ConvBN(4, 4, 3))
    assert found(report) == ["encode", "mask", "MAC"]
    assert report.rows[2].reason == "different scales meet at 1 (add)"


def test_the_head_alone_can_be_audited() -> None:
    report = audit(ClassificationHead(3, 10), X)
    assert found(report) == ["AC"]
    assert report.verdict == "strictly spike-driven"
