"""Gradients of convolutions, by whichever way is fastest."""

import pytest
import torch
from torch.nn.functional import conv2d

from spikeformers.ops.winograd import is_faster
from spikeformers.transform._weigh import Kernel, grad_of_images
from tests.helpers import randn
from tests.ops.levels import LIBRARIES, natively


@pytest.mark.parametrize("padding", [0, 1, 2])
def test_the_gradient_by_winograds_way_is_that_of_autograd(padding: int) -> None:
    images = randn(3, 20, 17, 22, seed=0, dtype=torch.float64).requires_grad_()
    weight = randn(24, 20, 3, 3, seed=1, dtype=torch.float64)
    y = conv2d(images, weight, padding=padding)
    grad = randn(*y.shape, seed=2, dtype=torch.float64)
    grad = grad.contiguous(memory_format=torch.channels_last)
    (expected,) = torch.autograd.grad(y, images, grad)
    with natively(next(iter(LIBRARIES)), 1):
        assert is_faster(grad.movedim(1, -1), 20, 2 - padding)  # so that it is taken
        found = grad_of_images(grad, weight, images.shape[2:], Kernel(1, padding, 1))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
