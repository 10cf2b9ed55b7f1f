"""`audit(..., verify=data)`: every value of every operation is compared with its claim."""

import json

import pytest
import torch
from torch import Tensor, nn

from spikeformers.analysis import audit
from spikeformers.analysis.alphabet import RULES
from spikeformers.analysis.observe import Observed, stray
from spikeformers.errors import ClaimError, InputError
from spikeformers.layers import Chain, ConvBN, PerStep
from spikeformers.models import create_model
from spikeformers.neurons import LIF
from spikeformers.types import BINARY, Alphabet
from tests.helpers import enliven, randn

pytestmark = pytest.mark.compile

NAN = float("nan")


def network() -> Chain:
    torch.manual_seed(0)
    pool = PerStep(nn.AvgPool2d(2))
    return Chain(ConvBN(3, 4, 3), LIF(v_threshold=0.3), pool, ConvBN(4, 2, 1)).double()


def images(samples: int) -> Tensor:
    return randn(2, samples, 3, 8, 8)


def test_data_that_keeps_the_claims_is_counted() -> None:
    # Claimed are the spikes, views of them around the pooling, and its integers.
    report = audit(network(), images(2), verify=[images(4), images(2)])
    spikes, pooled = 2 * 6 * 4 * 8 * 8, 2 * 6 * 4 * 4 * 4
    assert report.observed.samples == 6
    views = (report.observed.values - spikes - pooled) / min(spikes, pooled)
    assert views == int(views) >= 1
    assert f"observed: {report.observed}\n" in str(report)
    facts = json.loads(json.dumps(report.as_dict()))
    assert facts["observed"]["values"] == report.observed.values
    assert audit(network(), images(2)).as_dict()["observed"] is None


def test_a_wrong_rule_is_found_with_its_path_and_value(monkeypatch) -> None:
    monkeypatch.setitem(RULES, "aten::avg_pool2d", lambda *_: Alphabet(0, 1))
    with pytest.raises(ClaimError, match=r"2.module \(avg_pool2d\) gives 0\.\d+, but .* \{0,1\}"):
        audit(network(), images(1), verify=images(2))


def test_an_input_that_is_not_as_claimed_is_found() -> None:
    counts = torch.zeros(2, 3, 3, 8, 8)
    counts[1, 2, 0, 4, 4] = 2
    with pytest.raises(ClaimError, match=r"the data holds 2, but .* \{0,1\}"):
        audit(network().float(), counts[:, :1], image=BINARY, verify=counts)


@pytest.mark.parametrize(
    ("data", "got"),
    [
        ([], "verify is empty"),
        ([torch.zeros(2, 3, 3, 8, 8)], r"verify holds \[2, 3, 3, 8, 8\]: expected \[2, 2, 3"),
        ([torch.zeros(2, 2, 3, 8, 9)], r"verify holds \[2, 2, 3, 8, 9\]"),
        ([torch.zeros(3, 2, 3, 8, 8)], r"verify holds \[3, 2, 3, 8, 8\]"),
        ([torch.zeros(2, 2)], r"verify holds \[2, 2\]"),
        ([(1, 2)], "verify holds tuple"),
    ],
)
def test_data_of_another_shape_is_refused(data, got) -> None:
    with pytest.raises(InputError, match=got):
        audit(network(), images(2), verify=data)


@pytest.mark.parametrize(
    ("alphabet", "values", "found"),
    [
        (BINARY, [0, 1, 1], None),
        (BINARY, [0, 1, 2], 2),
        (BINARY, [0, -1], -1),
        (BINARY, [0, 0.5], 0.5),
        (Alphabet(0, 9, 1 / 9), [0, 1 / 3, 1], None),
        (Alphabet(0, 9, 1 / 9), [0.3], 0.3),
        (Alphabet(-1, 1), [-1, 0, 1], None),
        (Alphabet(0, 1, None), [0, 0.7, 0.7000001], None),
        (Alphabet(0, 1, None), [0, 0.7, 0.8], 0.8),
    ],
    ids=str,
)
def test_a_stray_is_a_value_outside(alphabet, values, found) -> None:
    value = stray(alphabet, torch.tensor(values, dtype=torch.float64))
    assert value == (None if found is None else pytest.approx(found))


def test_nan_is_no_spike() -> None:
    assert stray(BINARY, torch.tensor([0.0, NAN])) is not None


@pytest.mark.parametrize("name", ["meta_spikeformer_tiny", "sew_net_tiny"])
def test_families_keep_their_claims_on_noise(name) -> None:
    model = enliven(create_model(name))
    x = randn(2, 2, model.in_channels, 32, 32)
    observed = audit(model, x[:, :1], verify=x).observed
    assert isinstance(observed, Observed)
    assert observed.samples == 2 and observed.values > 10_000
