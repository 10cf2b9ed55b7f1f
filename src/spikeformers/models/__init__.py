"""One readable file per architecture, on a shared skeleton."""

from spikeformers.models import meta_spikeformer as _meta_spikeformer  # noqa: F401 - registers
from spikeformers.models._backbone import Backbone, Stage
from spikeformers.models._official import from_official, official_names, to_official
from spikeformers.models._pickles import read_official_file
from spikeformers.models._registry import (
    ModelConfig,
    create_model,
    list_models,
    part,
    register,
)
from spikeformers.models._weights import (
    describe_model,
    load_model,
    read_checkpoint,
    rebuild_model,
    save_model,
    write_checkpoint,
)

from_pretrained = Backbone.from_pretrained

__all__ = [
    "Backbone",
    "ModelConfig",
    "Stage",
    "create_model",
    "describe_model",
    "from_official",
    "from_pretrained",
    "list_models",
    "load_model",
    "official_names",
    "part",
    "read_checkpoint",
    "read_official_file",
    "rebuild_model",
    "register",
    "save_model",
    "to_official",
    "write_checkpoint",
]
