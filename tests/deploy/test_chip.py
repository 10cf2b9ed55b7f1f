"""What a chip has to do for a model, and what it cannot, on networks that one can count by hand."""

import json

import pytest
import torch
from torch import nn

from spikeformers.deploy import Operation, Profile, check, inventory, list_chips, load_chip
from spikeformers.errors import ConfigError, InputError
from spikeformers.layers import SSA, Branch, Chain, ConvBN, PerStep, Trunk, sew
from spikeformers.models import create_model
from spikeformers.neurons import IF, ILIF, LIF
from spikeformers.types import BINARY

pytestmark = pytest.mark.compile

EVENTS = torch.zeros(2, 3, 2, 8, 8)


def operations_of(*parts: nn.Module, **options) -> list[Operation]:
    return list(inventory(Chain(*parts), EVENTS, **options))


def limits_of(*parts: nn.Module, chip: str, image=BINARY) -> dict[str, object]:
    report = check(Chain(*parts), EVENTS, chip, image=image)
    return {violation.limit: violation.found for violation in report.violations}


def conv(channels: int = 2, outputs: int = 4, kernel: int = 3, **options) -> nn.Module:
    return PerStep(nn.Conv2d(channels, outputs, kernel, bias=False, **options))


def test_a_convolution_is_counted_by_hand() -> None:
    conv_row, neuron = operations_of(conv(padding=1), IF(), image=BINARY)
    assert (conv_row.operator, conv_row.operands) == ("synapse", ("{0,1}", "weights"))
    assert conv_row.outputs == 4 * 64
    assert conv_row.fan_in == 2 * 9
    # Of the 9 places of a window, 8 rows and columns less 2/3 of one at each end are on the map.
    assert conv_row.connections == 2 * 4 * (3 * 8 - 2) ** 2
    assert conv_row.weights == 2 * 4 * 9
    assert (neuron.operator, neuron.neurons) == ("neuron", 256)
    assert neuron.traits == {"readers": 0, "spike": 1, "leak": "none", "reset": "zero"}


@pytest.mark.parametrize(("weight_bits", "bits"), [(8, 13), (4, 8), (2, 6)])
def test_an_accumulator_holds_its_largest_sum_and_a_sign(weight_bits, bits) -> None:
    layer = conv()
    nn.init.ones_(layer.module.weight)
    (row,) = operations_of(layer, image=BINARY, weight_bits=weight_bits)
    # 18 inputs of the largest weight.
    assert row.accumulator_bits == bits
    assert 2 ** (bits - 2) <= 18 * (2 ** (weight_bits - 1) - 1) < 2 ** (bits - 1)


def test_an_analog_image_is_encoded_and_has_no_accumulator_of_integers() -> None:
    (row,) = operations_of(conv())
    assert (row.operator, row.accumulator_bits) == ("encode", None)


def test_attention_is_a_product_of_spikes_without_weights() -> None:
    rows = operations_of(conv(2, 8, 1), LIF(), SSA(8, 2, neuron=LIF), image=BINARY)
    products = [row for row in rows if row.operator == "spike product"]
    assert [row.fan_in for row in products] == [64, 4] or [row.fan_in for row in products] == [
        4,
        64,
    ]
    assert all(row.weights == 0 for row in products)
    # Counts need no sign: the first holds up to its fan-in.
    first = products[0]
    assert first.accumulator_bits == first.fan_in.bit_length()


def test_pools_shortcuts_and_integers_have_names() -> None:
    rows = operations_of(
        conv(padding=1),
        LIF(),
        sew(Chain(conv(4, 4, padding=1), LIF()), connect="add"),
        PerStep(nn.MaxPool2d(2)),
        conv(4, 4, padding=1),
        Trunk([dict(mixer=Branch(ILIF(levels=4), conv(4, 4, padding=1)))]),
        LIF(),
        PerStep(nn.AvgPool2d(4)),
        image=BINARY,
    )
    assert [row.operator for row in rows] == [
        *("synapse", "neuron", "synapse", "neuron", "spike shortcut", "maximum"),
        *("integer synapse", "neuron", "integer synapse", "membrane shortcut", "neuron", "average"),
    ]
    assert [row.traits["pool"] for row in rows if "pool" in row.traits] == [2, 4]
    assert [row.traits["spike"] for row in rows if row.operator == "neuron"] == [1, 1, 4, 1]


def test_a_small_network_of_events_fits_on_speck() -> None:
    parts = [conv(padding=1), IF(), PerStep(nn.AvgPool2d(2)), conv(4, 8), IF()]
    report = check(Chain(*parts), EVENTS, "speck", image=BINARY)
    assert report.verdict == "fits"
    assert "not checked" in str(report) and "reset" in report.unchecked


@pytest.mark.parametrize(
    ("parts", "limit", "found"),
    [
        ([conv(padding=1), LIF()], "leak", "proportional"),
        ([conv(stride=3), IF()], "stride", 3),
        ([conv(padding=8), IF()], "padding", 8),
        ([conv(2, 1025, 1), IF()], "channels", 1025),
        ([conv(), IF(), PerStep(nn.AvgPool2d(3))], "pool", 3),
        ([conv(), IF(), PerStep(nn.MaxPool2d(2))], "operator", "maximum"),
        ([conv(), conv(4, 4), IF()], "operator", "multiply"),
        (
            [conv(kernel=1), IF(), *(m for _ in range(9) for m in (conv(4, 4, 1), IF()))],
            "cores",
            10,
        ),
    ],
)
def test_speck_names_what_it_cannot(parts, limit, found) -> None:
    assert limits_of(*parts, chip="speck")[limit] == found


def test_speck_sees_no_images() -> None:
    assert limits_of(conv(), IF(), chip="speck", image=None) == {"operator": "encode"}


def test_an_event_driven_chip_runs_what_stmixer_is_made_of() -> None:
    """But for the bias of folded norms and the head that reads membranes."""
    model = create_model("stmixer_tiny", surrogates=False)
    report = check(model, torch.zeros(1, 1, 3, 48, 64), "event_driven")
    found = {(violation.limit, violation.found) for violation in report.violations}
    assert found == {("bias", True), ("operator", "multiply")}
    multiplying = [v.path for v in report.violations if v.found == "multiply"]
    assert multiplying == ["head.linear"]


def test_an_event_driven_chip_runs_no_spikformer_and_a_clocked_one_no_integers() -> None:
    model, image = create_model("spikformer_tiny"), torch.zeros(1, 1, 3, 32, 32)
    found = [v.found for v in check(model, image, "event_driven").violations]
    assert {"maximum", "spike product"} < set(found) and found.count("spike product") == 2
    found = [v.found for v in check(model, image, "clocked").violations]
    assert set(found) == {"integer synapse"}


def test_too_many_readers_and_bias() -> None:
    rows = operations_of(conv(2, 8, 1), LIF(), SSA(8, 2, neuron=LIF), image=BINARY)
    assert rows[1].traits["readers"] == 3
    assert limits_of(ConvBN(2, 4, 3), IF(), chip="event_driven") == {"bias": True}


def test_the_report_is_json_and_text_with_totals() -> None:
    report = check(Chain(conv(padding=1), LIF()), EVENTS, "speck", image=BINARY)
    facts = json.loads(json.dumps(report.as_dict()))
    assert facts["verdict"] == "does not fit"
    assert facts["violations"][0]["change"] == "use neurons without it: IF"
    assert "72 weights, 256 membranes (512 bytes of 16 bits)" in str(report)


def test_every_profile_names_a_source_for_every_limit() -> None:
    for name in list_chips():
        chip = load_chip(name)
        assert chip.limits and all(len(limit.source) > 10 for limit in chip.limits.values())


def test_an_unknown_chip_gets_near_matches() -> None:
    with pytest.raises(ConfigError, match=r"chip 'spek' is unknown: expected 'speck'$"):
        load_chip("spek")
    with pytest.raises(ConfigError, match="'clocked' or 'event_driven' or 'speck'"):
        load_chip("zzz")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("title = 'x'\n[kernl]\nvalue = 3\nsource = 'y'", "'kernl': expected 'kernel'"),
        ("title = 'x'\n[kernel]\nvalue = 3", "'source'"),
        ("[kernel]\nvalue = 3\nsource = 'y'", "'title'"),
        ("title = ", "expected a title"),
        ("title = 'x'\n[leak]\nvalue = 3\nsource = 'y'", "leak=3: expected "),
        ("title = 'x'\n[operator]\nvalue = ['sinapse']\nsource = 'y'", "synapse"),
        ("title = 'x'\n[cores]\nvalue = 'nine'\nsource = 'y'", "cores='nine': expected a number"),
        ("title = 'x'\n[weight_bits]\nvalue = [8]\nsource = 'y'", "expected a number"),
        ("title = 'x'\nkernel = 3", "expected a title"),
    ],
)
def test_a_profile_of_ones_own_is_read_strictly(tmp_path, text, message) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_chip(path)


def test_a_profile_of_ones_own_is_checked(tmp_path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("title = 'mine'\n[kernel]\nvalue = 2\nsource = 'me'\n")
    chip = load_chip(path)
    assert isinstance(chip, Profile) and chip.name == "mine"
    (violation,) = check(Chain(conv(), LIF()), EVENTS, chip).violations
    assert "kernel is 3, the chip has at most 2" in str(violation)


def test_an_example_is_a_batch() -> None:
    with pytest.raises(InputError, match="example is no batch"):
        inventory(Chain(conv()), torch.zeros(2, 3))
