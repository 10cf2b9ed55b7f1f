"""Spiking vision transformers: exact, trained, audited, measured.

import spikeformers as sf

model = sf.create_model("meta_spikeformer_15m", num_classes=10)
y = model(sf.encode.direct(images, timesteps=4))      # per-step scores [T, B, K]
scores = model.readout(y)                             # [B, K]
"""

from spikeformers.analysis import audit, energy
from spikeformers.data import encode
from spikeformers.layers import fold
from spikeformers.models import (
    create_model,
    from_official,
    from_pretrained,
    list_models,
    load_model,
    official_names,
    save_model,
    to_official,
)
from spikeformers.streaming import Stream, advance
from spikeformers.transform import accelerate, quantize

__version__ = "0.1.0.dev0"

__all__ = [
    "Stream",
    "accelerate",
    "advance",
    "audit",
    "create_model",
    "encode",
    "energy",
    "fold",
    "from_official",
    "from_pretrained",
    "list_models",
    "load_model",
    "official_names",
    "quantize",
    "save_model",
    "to_official",
]
