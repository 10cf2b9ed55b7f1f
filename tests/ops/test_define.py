"""The definition of ops: what a first call costs."""

import subprocess
import sys

STEP = """
import sys
import torch
import spikeformers as sf

model = sf.accelerate(sf.create_model("meta_spikeformer_tiny", num_classes=3))
model(sf.encode.direct(torch.zeros(2, 3, 32, 32), 2)).sum().backward()
compilers = [name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules]
assert not compilers, compilers
"""


def test_a_first_step_loads_no_compiler() -> None:
    subprocess.run([sys.executable, "-c", STEP], check=True, timeout=120)
