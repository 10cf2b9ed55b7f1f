"""How an op is made known to PyTorch.

`torch.library.custom_op` does the same, but loads the compiler (a second or more) when the op first
runs, and asks it at every call.
"""

from collections.abc import Callable
from typing import Any

import torch


def custom_op(name: str, mutates: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Define an op by its kernel.

    Args:
        name: Full name, as in "spikeformers::lif".
        mutates: The arguments that it writes to.

    Returns:
        A decorator that turns the kernel for all devices into the op. The functions
        `register_fake`, `register_autograd`, `register_vmap` and `impl` of `torch.library` say more
        about it.
    """

    def decorate(kernel: Callable[..., Any]) -> Any:
        schema = torch.library.infer_schema(kernel, mutates_args=mutates)
        torch.library.define(name, schema, tags=(torch.Tag.pt2_compliant_tag,))
        torch.library.impl(name, "default", kernel)
        op: Any = torch.ops
        for part in name.split("::"):
            op = getattr(op, part)
        return op.default

    return decorate
