"""One readable file per architecture, on a shared skeleton."""

from spikeformers.models import dsr as _dsr  # noqa: F401 - registers
from spikeformers.models import masked_autoencoder as _masked_autoencoder  # noqa: F401 - registers
from spikeformers.models import meta_spikeformer as _meta_spikeformer  # noqa: F401 - registers
from spikeformers.models import ms_resnet as _ms_resnet  # noqa: F401 - registers
from spikeformers.models import msvit as _msvit  # noqa: F401 - registers
from spikeformers.models import official as _official_files  # noqa: F401 - registers
from spikeformers.models import qkformer as _qkformer  # noqa: F401 - registers
from spikeformers.models import revsformer as _revsformer  # noqa: F401 - registers
from spikeformers.models import revsresnet as _revsresnet  # noqa: F401 - registers
from spikeformers.models import sdt as _sdt  # noqa: F401 - registers
from spikeformers.models import sdt_v3 as _sdt_v3  # noqa: F401 - registers
from spikeformers.models import sdt_v3_large as _sdt_v3_large  # noqa: F401 - registers
from spikeformers.models import sew_net as _sew_net  # noqa: F401 - registers
from spikeformers.models import sew_resnet as _sew_resnet  # noqa: F401 - registers
from spikeformers.models import spike_yolo as _spike_yolo  # noqa: F401 - registers
from spikeformers.models import spikformer as _spikformer  # noqa: F401 - registers
from spikeformers.models import spikingformer as _spikingformer  # noqa: F401 - registers
from spikeformers.models import stas as _stas  # noqa: F401 - registers
from spikeformers.models import stmixer as _stmixer  # noqa: F401 - registers
from spikeformers.models._backbone import Backbone, Stage
from spikeformers.models._official import from_official, official_names, to_official
from spikeformers.models._pickles import read_official_file
from spikeformers.models._registry import (
    ModelConfig,
    create_model,
    list_models,
    model_arguments,
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
    "model_arguments",
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
