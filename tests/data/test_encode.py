import pytest
import torch

from spikeformers.data import direct, over_time
from spikeformers.errors import InputError


def test_direct_repeats_without_a_copy():
    images = torch.rand(2, 3, 5, 7)
    encoded = direct(images, timesteps=4)
    assert encoded.shape == (4, 2, 3, 5, 7)
    assert torch.equal(encoded, images.repeat(4, 1, 1, 1, 1))
    assert encoded.data_ptr() == images.data_ptr()
    assert encoded.stride(0) == 0


def test_direct_keeps_dtype_and_carries_gradients():
    images = torch.rand(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    encoded = direct(images, 3)
    encoded.sum().backward()
    assert encoded.dtype == torch.float64
    assert torch.equal(images.grad, torch.full_like(images, 3.0))


@pytest.mark.parametrize("shape", [(3, 8, 8), (4, 2, 3, 8, 8), (8,)])
def test_direct_wants_four_axes(shape):
    with pytest.raises(InputError, match=r"images has shape .* expected \[B, C, H, W\]"):
        direct(torch.rand(shape), 4)


@pytest.mark.parametrize("timesteps", [0, -1])
def test_direct_wants_a_time_step(timesteps):
    with pytest.raises(InputError, match=f"timesteps is {timesteps}, expected at least 1"):
        direct(torch.rand(1, 1, 2, 2), timesteps)


@pytest.mark.parametrize("timesteps", [4.0, "4", None, True])
def test_direct_wants_an_int(timesteps):
    with pytest.raises(InputError, match=r"timesteps is .* expected an int"):
        direct(torch.rand(1, 1, 2, 2), timesteps)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_direct_wants_floats(dtype):
    with pytest.raises(InputError, match=r"scale to 0..1 and normalise first"):
        direct(torch.zeros(1, 1, 2, 2, dtype=dtype), 4)


def test_direct_wants_a_tensor():
    with pytest.raises(InputError, match="images is of type list"):
        direct([[[[0.0]]]], 4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_direct_wants_finite_values(value):
    images = torch.zeros(1, 1, 2, 2)
    images[0, 0, 1, 1] = value
    with pytest.raises(InputError, match="NaN or infinity"):
        direct(images, 4)


@pytest.mark.compile
def test_direct_compiles_to_one_graph():
    compiled = torch.compile(direct, backend="eager", fullgraph=True)
    images = torch.rand(2, 1, 4, 4)
    assert torch.equal(compiled(images, 3), direct(images, 3))


def test_over_time_shows_an_image_at_every_step_and_frames_one_after_the_other():
    images, frames = torch.rand(2, 3, 5, 7), torch.rand(2, 4, 3, 5, 7)
    assert torch.equal(over_time(images, 4), direct(images, 4))
    y = over_time(frames, 4)
    assert y.shape == (4, 2, 3, 5, 7)
    assert all(torch.equal(y[t], frames[:, t]) for t in range(4))
    with pytest.raises(InputError, match=r"batch has 4 frames .* expected 2 in \[B, T, C, H, W\]"):
        over_time(frames, 2)
