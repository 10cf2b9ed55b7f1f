"""The authors' files: their arguments, modules and keys, and ours.

Importing this package registers every map.
"""

from spikeformers.models.official import dsr as _dsr  # noqa: F401 - registers
from spikeformers.models.official import meta_spikeformer as _meta_spikeformer  # noqa: F401 - registers
from spikeformers.models.official import ms_resnet as _ms_resnet  # noqa: F401 - registers
from spikeformers.models.official import msvit as _msvit  # noqa: F401 - registers
from spikeformers.models.official import qkformer as _qkformer  # noqa: F401 - registers
from spikeformers.models.official import revsformer as _revsformer  # noqa: F401 - registers
from spikeformers.models.official import revsresnet as _revsresnet  # noqa: F401 - registers
from spikeformers.models.official import sdt as _sdt  # noqa: F401 - registers
from spikeformers.models.official import sdt_v3 as _sdt_v3  # noqa: F401 - registers
from spikeformers.models.official import sdt_v3_large as _sdt_v3_large  # noqa: F401 - registers
from spikeformers.models.official import sew_net as _sew_net  # noqa: F401 - registers
from spikeformers.models.official import sew_resnet as _sew_resnet  # noqa: F401 - registers
from spikeformers.models.official import spike_yolo as _spike_yolo  # noqa: F401 - registers
from spikeformers.models.official import spikformer as _spikformer  # noqa: F401 - registers
from spikeformers.models.official import spikingformer as _spikingformer  # noqa: F401 - registers
from spikeformers.models.official import stmixer as _stmixer  # noqa: F401 - registers
