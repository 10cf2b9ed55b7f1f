"""Dense 3x3 convolutions by Winograd's algorithm: the native kernel against PyTorch's own."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from spikeformers.errors import InputError
from spikeformers.ops import OUTPUT_ALPHABETS, native
from spikeformers.ops.winograd import is_faster, reference, winograd_conv
from spikeformers.types import ANALOG
from tests.helpers import assert_same, randn
from tests.ops.levels import DTYPES, LIBRARIES, SETTINGS, assert_same_bits, misaligned, natively

Case = tuple[int, int, int, int, int, int]

# Images, height, width, channels, outputs, padding.
CASES: list[Case] = [
    (1, 1, 1, 1, 1, 1),
    (2, 4, 4, 16, 32, 1),
    (2, 5, 7, 3, 2, 1),
    (3, 9, 6, 17, 33, 0),
    (1, 3, 3, 5, 40, 0),
    (1, 2, 11, 8, 7, 2),
    (2, 1, 6, 4, 9, 4),
    (5, 13, 14, 31, 65, 1),
    (1, 160, 170, 2, 80, 1),  # the outputs go past the caches
    (0, 4, 4, 3, 3, 1),
]


def tensors(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor, int]:
    """Arguments of the op."""
    n, h, w, c, o, padding = case
    return randn(n, h, w, c, dtype=dtype), randn(o, c, 3, 3, seed=1, dtype=dtype), padding


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_level_equals_pytorch_in_float64(case: Case) -> None:
    x, weight, padding = tensors(case, torch.float64)
    expected = reference.winograd_conv(x, weight, padding)
    for level in LIBRARIES:
        with natively(level):
            assert_same(winograd_conv(x, weight, padding), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_shorter_numbers_are_as_near_as_they_can_be(case: Case, dtype: torch.dtype) -> None:
    x, weight, padding = tensors(case, dtype)
    exact = reference.winograd_conv(x.double(), weight.double(), padding)
    size = reference.winograd_conv(x.double().abs(), weight.double().abs(), padding)
    stored = 0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
    most = torch.maximum(size.amax((1, 2), keepdim=True), size)
    for level in LIBRARIES:
        with natively(level):
            found = winograd_conv(x, weight, padding)
        assert found.dtype == dtype
        bound = 16 * torch.finfo(torch.float32).eps * most
        assert ((found.double() - exact).abs() <= bound + stored * (exact.abs() + bound)).all()


@pytest.mark.parametrize("channels", [128, 512])
def test_it_rounds_as_the_reference_page_says(channels: int) -> None:
    x, weight, _ = tensors((1, 28, 28, channels, 64, 1), torch.float32)
    exact = reference.winograd_conv(x.double(), weight.double(), 1)
    for level in LIBRARIES:
        with natively(level):
            error = winograd_conv(x, weight, 1).double() - exact
        assert error.square().mean().sqrt() < 2.5e-6 * exact.square().mean().sqrt()
        assert error.abs().max() < 3e-5 * exact.square().mean().sqrt()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_levels_and_threads_agree_to_the_last_bit(case: Case, dtype: torch.dtype) -> None:
    results = {}
    for level, threads in SETTINGS:
        with natively(level, threads):
            results[level, threads] = winograd_conv(*tensors(case, dtype))
    for setting, result in results.items():
        assert_same_bits((result,), (results[SETTINGS[-1]],), str(setting))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_image_does_not_see_its_neighbours(dtype: torch.dtype) -> None:
    x, weight, padding = tensors((5, 13, 14, 31, 65, 1), dtype)
    x[1], x[3] = torch.nan, torch.inf
    for level in LIBRARIES:
        with natively(level):
            together = winograd_conv(x, weight, padding)
            alone = [winograd_conv(x[i : i + 1], weight, padding) for i in (0, 2, 4)]
        assert_same_bits((together[::2],), (torch.cat(alone),), level)
        assert together[1].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_and_alignment_of_the_arguments_do_not_matter(dtype: torch.dtype) -> None:
    x, weight, padding = tensors((2, 5, 7, 19, 35, 1), dtype)
    turned = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    swapped = weight.transpose(0, 1).contiguous().transpose(0, 1)
    for level in LIBRARIES:
        with natively(level):
            expected = winograd_conv(x, weight, padding)
            for arguments in ((turned, swapped), (misaligned(x), misaligned(weight))):
                assert torch.equal(winograd_conv(*arguments, padding), expected)


@pytest.mark.compile  # traces with sizes that are symbols
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    opcheck(winograd_conv, tensors((2, 5, 7, 3, 2, 1), dtype))


def test_without_a_library_pytorch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "LIBRARY", None)
    x, weight, padding = tensors((2, 5, 7, 3, 2, 1), torch.float64)
    assert_same(winograd_conv(x, weight, padding), reference.winograd_conv(x, weight, padding))
    assert not is_faster(x.new_empty(8, 56, 56, 64), 64, 1)


def test_outputs_are_analog() -> None:
    assert OUTPUT_ALPHABETS[winograd_conv.name()]() == (ANALOG,)


def test_bad_arguments_are_refused() -> None:
    x, weight, _ = tensors((2, 5, 7, 3, 2, 1), torch.float64)
    with pytest.raises(InputError, match=r"x has shape \[5, 7, 3\]"):
        winograd_conv(x[0], weight, 1)
    with pytest.raises(InputError, match=r"x has shape \[2, 2, 7, 3\], padding=0: expected"):
        winograd_conv(x[:, :2], weight, 0)
    with pytest.raises(InputError, match="padding=-1"):
        winograd_conv(x, weight, -1)
    with pytest.raises(InputError, match=r"float64 \[2, 3, 3, 2\]: expected .* \[O, 3, 3, 3\]"):
        winograd_conv(x, weight[..., :2], 1)
    with pytest.raises(InputError, match=r"weight is torch\.float64 \[0, 3, 3, 3\]"):
        winograd_conv(x, weight[:0], 1)
    with pytest.raises(InputError, match=r"weight is torch\.float32 .* expected torch\.float64"):
        winograd_conv(x, weight.float(), 1)


@pytest.mark.parametrize(
    ("images", "side", "channels", "dtype", "expected"),
    [
        (8, 112, 32, torch.float32, True),
        (8, 7, 512, torch.float32, True),
        (1, 7, 512, torch.float32, False),  # too few tiles
        (64, 5, 512, torch.float32, False),  # most of each tile is lost
        (8, 56, 8, torch.float32, False),
        (8, 28, 128, torch.bfloat16, True),
        (8, 14, 128, torch.bfloat16, False),
        (8, 56, 16, torch.bfloat16, False),
        (8, 28, 128, torch.float64, True),
        (8, 28, 128, torch.float16, False),
        (0, 56, 64, torch.float32, False),
    ],
)
def test_it_is_called_faster_where_it_was_measured_so(
    images: int, side: int, channels: int, dtype: torch.dtype, expected: bool
) -> None:
    x = torch.empty(images, side, side, channels, dtype=dtype)
    for level, threads in itertools.product(LIBRARIES, (1, 2)):
        with natively(level, threads):
            assert is_faster(x, 64, 1) is (expected and level != "baseline")
            assert not is_faster(x, 8, 1)
