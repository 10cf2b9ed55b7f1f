"""Official checkpoints: strict names in both directions."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import spikeformers as sf
from spikeformers.errors import CheckpointError, ConfigError, InputError
from spikeformers.layers import Branch, Chain, ChannelMLP, ClassificationHead, ConvBN, Trunk
from spikeformers.models import Backbone, Stage, _official, _registry, register
from spikeformers.models._official import Dead, Official, register_official
from spikeformers.neurons import LIF
from tests.golden import published
from tests.helpers import assert_same, enliven, gradients, neurons_of, randn

FILE = "BICLab/Spike-Driven-Transformer-V2/classification/models.py"
SOURCE = f"{FILE}:Spiking_vit_MetaFormer"
SIZE = dict(embed_dim=(8, 8, 16, 24), num_heads=4, in_channels=3, num_classes=5)
PUBLISHED = published("sdt_v2")


@pytest.fixture(scope="module")
def state() -> Mapping[str, Tensor]:
    """Return an official checkpoint of a small model, with random values."""
    model = sf.create_model("meta_spikeformer", dims=(4, 8, 8, 16, 24), heads=4, num_classes=5)
    return sf.to_official(enliven(model))


def load(state: Mapping[str, Any], **options: Any) -> Backbone:
    return sf.from_official(state, SOURCE, **{**SIZE, **options})


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: entry["name"])
def test_published_checkpoints_fit_by_name_and_shape(entry: dict[str, Any]) -> None:
    shapes = dict(entry["state_dict"])
    source = f"{entry['repo']}/{entry['file']}:{entry['callable']}"
    with torch.device("meta"):
        tensors = {key: torch.empty(shape) for key, shape in shapes.items()}
    model = sf.from_official(tensors, source, **entry["kwargs"])
    assert sum(p.numel() for p in model.parameters()) == entry["param_count"]
    back = sf.to_official(model)
    assert {key: list(tensor.shape) for key, tensor in back.items()} == shapes
    assert model.official_source == source


def test_round_trip_keeps_every_tensor(state: Mapping[str, Tensor]) -> None:
    model = load(state)
    assert model.training
    back = sf.to_official(model)
    assert set(back) == set(state)
    for key, tensor in state.items():
        assert torch.equal(back[key], tensor), key
    again = sf.to_official(load(back))
    assert_same(again, back)


def test_the_source_is_remembered_in_checkpoints(
    state: Mapping[str, Tensor], tmp_path: Any
) -> None:
    sf.save_model(load(state), tmp_path / "m")
    assert sf.load_model(tmp_path / "m").official_source == SOURCE


def test_the_checkpoint_and_the_model_share_no_memory(state: Mapping[str, Tensor]) -> None:
    arrays = {key: tensor.numpy().copy() for key, tensor in state.items()}
    model = load(arrays)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for array in arrays.values():
        array[...] = 7
    assert_same(dict(model.state_dict()), before)
    assert all(p.requires_grad for p in model.parameters())


def changed(state: Mapping[str, Tensor], **changes: Tensor | None) -> dict[str, Tensor]:
    """Return a copy with keys replaced, added or (`None`) left out; `__` stands for a dot."""
    result = dict(state)
    for name, tensor in changes.items():
        key = name.replace("__", ".")
        if tensor is None:
            del result[key]
        else:
            result[key] = tensor
    return result


def test_every_misfit_is_named(state: Mapping[str, Tensor]) -> None:
    wrong = changed(state, head__bias=None, lif__w=torch.zeros(()), head__weight=torch.zeros(5, 23))
    with pytest.raises(CheckpointError) as caught:
        load(wrong)
    for fact in (
        "3 keys do not fit",
        "head.bias is missing",
        "lif.w has no counterpart",
        "head.weight has shape [5, 23], expected [5, 24]",
    ):
        assert fact in str(caught.value)


def test_shapes_are_checked_as_the_authors_write_them(state: Mapping[str, Tensor]) -> None:
    key = "block3.0.mlp.fc1_conv.weight"
    assert state[key].ndim == 3
    with pytest.raises(CheckpointError, match=r"fc1_conv\.weight has shape \[64, 16\], expected"):
        load({**state, key: state[key][..., 0]})


def test_an_empty_checkpoint_misses_everything_and_each_key_is_named(
    state: Mapping[str, Tensor],
) -> None:
    with pytest.raises(CheckpointError, match=f"^{len(state)} keys do not fit") as caught:
        load({})
    assert [key for key in state if f"{key} is missing" not in str(caught.value)] == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_floating_dtype_is_kept(state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    model = load({k: t.to(dtype) if t.is_floating_point() else t for k, t in state.items()})
    assert {p.dtype for p in model.parameters()} == {dtype}
    norm = model.stages[0].embed.conv.norm
    assert (norm.running_var.dtype, norm.num_batches_tracked.dtype) == (dtype, torch.int64)


def test_counters_may_be_stored_as_floats(state: Mapping[str, Tensor]) -> None:
    model = load({key: tensor.double().numpy() + 0.0 for key, tensor in state.items()})
    norm = model.stages[0].embed.conv.norm
    assert norm.num_batches_tracked.dtype == torch.int64
    model(torch.zeros(1, 2, 3, 32, 32, dtype=torch.float64))
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize(
    "source", ["models.py:Spiking_vit_MetaFormer", "Spiking_vit_MetaFormer", SOURCE]
)
def test_a_source_may_be_shortened(state: Mapping[str, Tensor], source: str) -> None:
    assert sf.from_official(state, source, **SIZE).official_source == SOURCE


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("Spiking_vit_Metaformer", SIZE, "unknown source.*Spiking_vit_MetaFormer"),
        ("vit_MetaFormer", SIZE, "unknown source"),
        ("", SIZE, "unknown source"),
        (SOURCE, dict(SIZE, embed_dims=8), "no argument 'embed_dims'.*'embed_dim'"),
        (SOURCE, dict(SIZE, corrected_=True), "no argument 'corrected_'"),
        (SOURCE, dict(SIZE, mlp_ratios=2), "mlp_ratios=2"),
        (SOURCE, dict(num_heads=8), "needs the argument 'embed_dim'"),
    ],
)
def test_misuse_is_explained(
    state: Mapping[str, Tensor], source: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        sf.from_official(state, source, **options)


def test_arguments_that_the_authors_ignore_are_ignored(state: Mapping[str, Tensor]) -> None:
    plain = load(state)
    other = load(state, drop_path_rate=0.3, depths=8, sr_ratios=1, img_size_h=9, qkv_bias=True)
    assert str(other) == str(plain)
    assert str(load(state, corrected=True)) == str(plain)


def test_a_part_of_the_names_gives_a_part_of_the_keys(state: Mapping[str, Tensor]) -> None:
    model = load(state)
    y = model(randn(1, 2, 3, 32, 32))
    y.sum().backward()
    every = gradients(model)
    keys = sf.to_official(model, every)
    assert len(keys) == len(every)
    name = "stages.3.blocks.0.mlp.fn.expand.linear.weight"
    some = sf.to_official(model, {name: every[name], "head.linear.bias": every["head.linear.bias"]})
    assert set(some) == {"block3.0.mlp.fc1_conv.weight", "head.bias"}
    assert some["block3.0.mlp.fc1_conv.weight"].shape == (64, 16, 1)
    assert sf.to_official(model, {}) == {}


@pytest.mark.parametrize("name", ["head.linear.weigth", "head.neuron", "head.bias", ""])
def test_names_that_are_no_tensors_are_refused(state: Mapping[str, Tensor], name: str) -> None:
    with pytest.raises(InputError, match="which is no tensor of the model"):
        sf.to_official(load(state), {name: torch.zeros(1)})


def test_neurons_have_official_names_too(state: Mapping[str, Tensor]) -> None:
    model = load(state)
    names = sf.official_names(model)
    assert names["head.neuron"] == "lif"
    assert names["stages.4.blocks.1.attn.fn.q.neuron"] == "block4.1.attn.q_lif"
    assert names["stages.2.blocks.1.mixer.fn.depthwise"] == "ConvBlock2_2.0.Conv.dwconv"
    assert set(neurons_of(model)) <= set(names)
    assert len(set(names.values())) == len(names)


def test_a_model_without_official_counterpart_says_so() -> None:
    model = sf.create_model("meta_spikeformer_tiny", conv_stages=5)
    with pytest.raises(ConfigError, match=f"0 official files fit; known: {FILE}"):
        sf.official_names(model)
    with pytest.raises(ConfigError, match="not made by create_model"):
        sf.official_names(nn.Linear(2, 2))


def toy(*, width: int = 2, num_classes: int = 3) -> Backbone:
    trunk = Trunk([dict(mlp=Branch(LIF(), ChannelMLP(width))) for _ in range(2)])
    stage = Stage(Chain(conv=ConvBN(3, width, 3)), trunk, width, 1)
    return Backbone([stage], ClassificationHead(width, num_classes))


def toy_arguments(*, embed: int, corrected: bool = False) -> dict[str, Any]:
    return dict(width=embed, num_classes=4 if corrected else 3)


def toy_official(file: str, dead: Mapping[str, Dead]) -> Official:
    return Official(
        architecture="toy",
        file=file,
        callables={"Toy": {}, "toy_small": dict(embed=2)},
        arguments=toy_arguments,
        ignored=["depth"],
        modules={
            "stem": "stages.0.embed.conv.conv",
            "bn": "stages.0.embed.conv.norm",
            "blocks.{i}.lif1": "stages.0.blocks.{i}.mlp.neuron",
            "blocks.{i}.fc1": "stages.0.blocks.{i}.mlp.fn.expand.linear",
            "blocks.{i}.bn1": "stages.0.blocks.{i}.mlp.fn.expand.norm",
            "blocks.{i}.lif2": "stages.0.blocks.{i}.mlp.fn.neuron",
            "blocks.{i}.fc2": "stages.0.blocks.{i}.mlp.fn.project.linear",
            "blocks.{i}.bn2": "stages.0.blocks.{i}.mlp.fn.project.norm",
            "lif": "head.neuron",
            "head": "head.linear",
        },
        axes={"*.fc?.weight": 4},
        dead=dead,
    )


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what a test registers; know the toy architecture."""
    for name in ("_BUILDERS", "_VARIANTS"):
        monkeypatch.setattr(_registry, name, dict(getattr(_registry, name)))
    monkeypatch.setattr(_official, "_OFFICIALS", list(_official._OFFICIALS))
    register("toy", variants={"tiny": {}})(toy)


def width_of(model: nn.Module) -> tuple[int, ...]:
    return (model.stages[0].channels,)


UNUSED = {
    "norm.weight": Dead("constructed, never called", lambda model: {"norm.weight": width_of(model)})
}


@pytest.mark.usefixtures("registries")
def test_keys_that_the_authors_never_use_are_dropped_and_made_up_again() -> None:
    register_official(toy_official("a/b/toy.py", UNUSED))
    model = sf.create_model("toy_tiny").double()
    keys = sf.to_official(model)
    assert "norm.weight" not in keys
    assert keys["blocks.1.fc1.weight"].shape == (8, 2, 1, 1)
    full = sf.to_official(model, dead="zeros")
    assert set(full) - set(keys) == {"norm.weight"}
    assert torch.equal(full["norm.weight"], torch.zeros(2).double())
    for state in (keys, full):
        loaded = sf.from_official(state, "toy_small")
        assert_same(dict(loaded.state_dict()), dict(model.state_dict()))
    with pytest.raises(InputError, match="dead='ones'"):
        sf.to_official(model, dead="ones")


@pytest.mark.usefixtures("registries")
def test_a_pattern_of_unused_keys_gives_no_key_with_a_star() -> None:
    def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
        return {f"blocks.{i}.norm.weight": width_of(model) for i in range(2)}

    register_official(
        toy_official("a/b/toy.py", {"blocks.*.norm.weight": Dead("never called", shapes)})
    )
    full = sf.to_official(sf.create_model("toy_tiny"), dead="zeros")
    assert set(full) - set(sf.to_official(sf.create_model("toy_tiny"))) == {
        "blocks.0.norm.weight",
        "blocks.1.norm.weight",
    }


@pytest.mark.usefixtures("registries")
def test_a_known_defect_is_kept_unless_corrected() -> None:
    register_official(toy_official("a/b/toy.py", {}))
    for corrected, classes in ((False, 3), (True, 4)):
        model = sf.create_model("toy_tiny", num_classes=classes)
        state = sf.to_official(model)
        loaded = sf.from_official(state, "Toy", corrected=corrected, embed=2, depth=9)
        assert loaded.head.linear.out_features == classes
    with pytest.raises(ConfigError, match="needs the argument 'embed'"):
        sf.from_official(state, "Toy")


@pytest.mark.usefixtures("registries")
def test_callables_of_the_same_name_need_their_file() -> None:
    for file in ("a/b/toy.py", "c/d/toy.py"):
        register_official(toy_official(file, {}))
    model = sf.create_model("toy_tiny")
    for short in ("Toy", "toy.py:Toy"):
        with pytest.raises(ConfigError, match=r"ambiguous: a/b/toy\.py:Toy, c/d/toy\.py:Toy"):
            sf.from_official({}, short, embed=2)
    with pytest.raises(ConfigError, match=r"2 official files fit; known: a/b/toy\.py, c/d/toy\.py"):
        sf.to_official(model)
    state = sf.to_official(model, source="c/d/toy.py:Toy")
    loaded = sf.from_official(state, "d/toy.py:Toy", embed=2)
    assert loaded.official_source == "c/d/toy.py:Toy"
    assert_same(sf.to_official(loaded), state)


def test_arrays_tensors_and_numbers_are_accepted(state: Mapping[str, Tensor]) -> None:
    mixed = {k: t.numpy() if i % 2 else t for i, (k, t) in enumerate(state.items())}
    counter = "downsample1_1.encode_bn.num_batches_tracked"
    mixed[counter] = np.int64(12)
    model = load(mixed)
    assert model.stages[0].embed.conv.norm.num_batches_tracked == 12
