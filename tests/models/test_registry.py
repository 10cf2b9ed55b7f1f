"""Names: models, overrides, parts; and what checkpoints keep of them."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import spikeformers as sf
from spikeformers.errors import CheckpointError, ConfigError, SpikeformersError
from spikeformers.layers import SDSA1, SDSA4, ChannelMLP, DistillationHead, SepConv
from spikeformers.models import (
    Backbone,
    ModelConfig,
    _registry,
    model_arguments,
    part,
    read_checkpoint,
    register,
    write_checkpoint,
)
from spikeformers.models.meta_spikeformer import sew_shortcut
from spikeformers.neurons import IF, LIF, PLIF, LearnedThresholdLIF, NeuronFactory
from tests.helpers import enliven, neurons_of, randn

TINY = "meta_spikeformer_tiny"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what a test registers."""
    for name in ("_BUILDERS", "_VARIANTS", "_PARTS"):
        monkeypatch.setattr(_registry, name, dict(getattr(_registry, name)))


def test_every_architecture_that_tells_classes_apart_has_a_tiny_variant() -> None:
    named = {name for name in _registry._BUILDERS if "num_classes" in model_arguments(name)}
    assert {f"{name}_tiny" for name in named} == set(sf.list_models("*_tiny"))
    assert _registry._BUILDERS.keys() - named == {"masked_autoencoder"}


def test_names_are_listed_sorted_and_by_pattern() -> None:
    names = sf.list_models()
    assert names == sorted(names)
    assert TINY in names
    assert sf.list_models("meta_spikeformer_31m_sd*") == [
        "meta_spikeformer_31m_sdsa1",
        "meta_spikeformer_31m_sdsa2",
        "meta_spikeformer_31m_sdsa4",
    ]
    assert sf.list_models("no such model") == []


@pytest.mark.parametrize("name", sf.list_models())
def test_every_registered_size_builds(name: str) -> None:
    with torch.device("meta"):
        model = sf.create_model(name, num_classes=10)
    assert model.config == ModelConfig(name, {"num_classes": 10})
    assert json.loads(json.dumps(model.config.overrides)) == model.config.overrides


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sf.create_model("meta_spikefomer_15m"), "'meta_spikefomer_15m'.*did you mean.*"),
        (lambda: sf.create_model("vgg"), "unknown model 'vgg'.*known are.*"),
        (lambda: sf.create_model(TINY, num_clases=3), "no argument 'num_clases'.*'num_classes'"),
        (lambda: sf.create_model(TINY, neuron="LIFF"), "unknown part 'LIFF'.*'LIF'"),
        (lambda: sf.create_model(TINY, neuron={"LIFF": {}}), "unknown part 'LIFF'"),
        (lambda: sf.create_model("meta_spikeformer"), "needs the argument 'dims'.*meta_spikef"),
        (lambda: sf.create_model(TINY, dims=(8, 16)), "one entry per stage, got 2, 5 and 5"),
        (lambda: sf.create_model(TINY, neuron=lambda **o: LIF(**o)), "cannot be saved by name.*@"),
        (lambda: sf.create_model(TINY, neuron=partial(LIF, 3.0)), "positional arguments"),
    ],
)
def test_misuse_is_explained(make: Callable[[], Backbone], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_near_matches_are_real_names() -> None:
    with pytest.raises(ConfigError, match="meta_spikeformer_15m"):
        sf.create_model("meta_spikeformer_15")


def test_an_architecture_takes_all_sizes_as_overrides() -> None:
    model = sf.create_model(
        "meta_spikeformer", dims=(4, 8), depths=(1, 1), strides=(2, 2), conv_stages=1, heads=2
    )
    assert model.strides == [2, 4]
    assert model(torch.zeros(1, 2, 3, 8, 8)).shape == (1, 2, 1000)


def taus(model: nn.Module) -> set[float]:
    return {neuron.tau for neuron in neurons_of(model).values()}


@pytest.mark.parametrize("neuron", [partial(LIF, tau=4.0), {"LIF": {"tau": 4.0}}], ids=str)
def test_parts_are_given_as_objects_or_as_plain_data(neuron: Any) -> None:
    model = sf.create_model(TINY, neuron=neuron)
    assert taus(model) == {4.0}
    assert model.config.overrides == {"neuron": {"LIF": {"tau": 4.0}}}
    by_name = sf.create_model(TINY, attention="SDSA1", shortcut="sew_shortcut")
    assert isinstance(by_name.stages[3].blocks[0]["attn"].fn.fn, SDSA1)


def test_plain_data_builds_nested_parts_too() -> None:
    given = partial(SDSA4, attn_neuron=partial(LearnedThresholdLIF, tau=3.0))
    config = sf.create_model(TINY, attention=given).config
    model = sf.create_model(config.name, **config.overrides)
    assert model.config == config
    assert taus(model) == {2.0, 3.0}


@pytest.mark.usefixtures("registry")
def test_parts_and_architectures_can_be_added(tmp_path: Path) -> None:
    @part
    def slow_lif(**options: Any) -> LIF:
        return LIF(tau=8.0, **options)

    @register("other", variants={"tiny": dict(width=4)})
    def other(*, width: int, neuron: NeuronFactory = LIF) -> Backbone:
        return sf.create_model(TINY, dims=(width,) * 5, heads=2, neuron=neuron)

    model = sf.create_model("other_tiny", neuron=slow_lif)
    assert taus(model) == {8.0}
    assert sf.list_models("other*") == ["other_tiny"]
    assert model.config.overrides == {"neuron": "slow_lif"}
    sf.save_model(model, tmp_path / "m")
    assert sf.load_model(tmp_path / "m").config == model.config


OVERRIDES: dict[str, dict[str, Any]] = {
    "neuron": dict(neuron=partial(LIF, tau=4.0, v_reset=None)),
    "IF": dict(neuron=IF),
    "PLIF": dict(neuron=partial(PLIF, tau=3.0)),
    "attention": dict(attention=SDSA1),
    "attention with arguments": dict(
        attention=partial(SDSA4, attn_neuron=partial(LearnedThresholdLIF, tau=3.0))
    ),
    "shortcut": dict(shortcut=sew_shortcut),
    "mixers": dict(token_mixer=partial(SepConv, kernel_size=5), channel_mixer=ChannelMLP),
    "head": dict(head=DistillationHead, num_classes=3),
    "headless": dict(num_classes=None),
    "numbers": dict(dims=(4, 4, 8, 8, 8), depths=[1, 2, 1, 1, 1], norm_gain=1.25),
}


@pytest.mark.parametrize("overrides", OVERRIDES.values(), ids=OVERRIDES)
def test_checkpoints_keep_overrides(overrides: dict[str, Any], tmp_path: Path) -> None:
    model = enliven(sf.create_model(TINY, **overrides)).eval()
    x = randn(3, 1, 3, 32, 48, seed=1)
    sf.save_model(model, tmp_path / "deep" / "model.safetensors")
    loaded = sf.load_model(str(tmp_path / "deep" / "model.safetensors"))
    assert loaded.config == model.config
    assert str(loaded) == str(model)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_checkpoints_keep_dtypes_and_can_be_trained_on(tmp_path: Path, dtype: torch.dtype) -> None:
    model = sf.create_model(TINY).to(dtype)
    sf.save_model(model, tmp_path / "m")
    loaded = sf.load_model(tmp_path / "m")
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert all(p.requires_grad for p in loaded.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m"
    write_checkpoint(path, {"a": torch.ones(2)}, {"n": 1})

    def full_disk(_tensors: object, target: Path, **_: object) -> None:
        target.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(CheckpointError, match=r"cannot write .*no space left"):
        write_checkpoint(path, {"a": torch.zeros(2)}, {"n": 2})
    assert [file.name for file in tmp_path.iterdir()] == ["m"]
    tensors, header = read_checkpoint(path)
    assert torch.equal(tensors["a"], torch.ones(2))
    assert header == {"n": 1}


def saved_tiny(path: Path) -> Path:
    sf.save_model(sf.create_model(TINY), path)
    return path


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(CheckpointError, match=f"no checkpoint {path}"):
            sf.load_model(path)


@pytest.mark.parametrize("length", [0, 5, 100, 5000, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, length: int) -> None:
    path = saved_tiny(tmp_path / "m")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="damaged or no safetensors file"):
        sf.load_model(path)


def test_a_pickle_is_refused_with_the_way_out(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "official.pth")
    with pytest.raises(CheckpointError, match="spikeformers convert"):
        sf.load_model(tmp_path / "official.pth")


def test_somebody_elses_tensors_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "m")
    with pytest.raises(CheckpointError, match="not written by spikeformers"):
        sf.load_model(tmp_path / "m")


def test_our_file_without_a_model_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "m", {"a": torch.zeros(2)}, {"kind": "statistics"})
    with pytest.raises(CheckpointError):
        sf.load_model(tmp_path / "m")


def test_tensors_of_another_architecture_are_named(tmp_path: Path) -> None:
    model = sf.create_model(TINY)
    header = {"model": {"name": TINY, "overrides": {"num_classes": 5}}}
    tensors = dict(model.state_dict())
    tensors["extra"] = tensors.pop("head.linear.bias")
    write_checkpoint(tmp_path / "m", tensors, header)
    with pytest.raises(CheckpointError) as caught:
        sf.load_model(tmp_path / "m")
    for fact in (
        f"not a {TINY}",
        "head.linear.bias is missing",
        "extra is unknown",
        "head.linear.weight has shape [10, 24], expected [5, 24]",
    ):
        assert fact in str(caught.value)


def test_a_checkpoint_of_an_unknown_model_is_refused(tmp_path: Path) -> None:
    header = {"model": {"name": "meta_spikeformer_huge", "overrides": {}}}
    write_checkpoint(tmp_path / "m", {"a": torch.zeros(2)}, header)
    with pytest.raises(SpikeformersError, match="meta_spikeformer_huge"):
        sf.load_model(tmp_path / "m")


def test_what_cannot_be_loaded_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(SpikeformersError, match="it has no name to save"):
        sf.save_model(Backbone(sf.create_model(TINY).stages, None), tmp_path / "anonymous")
    with pytest.raises(SpikeformersError):
        sf.save_model(nn.Linear(2, 2), tmp_path / "linear")
    assert list(tmp_path.iterdir()) == []


def test_a_folded_model_comes_back_or_is_not_saved(tmp_path: Path) -> None:
    model = enliven(sf.create_model(TINY)).eval()
    folded, x = sf.fold(model), randn(2, 1, 3, 32, 32)
    try:
        sf.save_model(folded, tmp_path / "m")
    except SpikeformersError:
        return
    assert torch.equal(sf.load_model(tmp_path / "m")(x), folded(x))
