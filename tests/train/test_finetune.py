"""Starting from other weights, and learning from a teacher."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from spikeformers.data import Preprocess
from spikeformers.errors import CheckpointError, ConfigError
from spikeformers.models import create_model, load_model, save_model
from spikeformers.train import Recipe, fit
from spikeformers.train.evaluate import start_from
from spikeformers.train.objective import Teacher, load_teacher
from spikeformers.train.recipe import DistillSection

Small = Callable[..., Recipe]
CPU = torch.device("cpu")


@pytest.fixture
def stage_one(small: Small, tmp_path: Path) -> Path:
    recipe = small("train.epochs=1", "train.timesteps=1", f"out={tmp_path / 'one'}")
    fit(recipe)
    return Path(recipe.out) / "best.safetensors"


def test_from_one_step_to_many_with_a_second_head(
    small: Small, tmp_path: Path, stage_one: Path
) -> None:
    """Stage 2 of the paper: T=1 weights, T=2 training, hard distillation."""
    teacher = f"{{teacher: {stage_one}, kind: hard, weight: 0.5, temperature: 1}}"
    two = small(
        "train.epochs=1",
        "train.timesteps=2",
        "train.learning_rate=1.0e-9",
        "train.weight_decay=0",
        f"model.weights={stage_one}",
        "model.overrides.head=DistillationHead",
        f"distill={teacher}",
        f"out={tmp_path / 'two'}",
    )
    fit(two)
    before = load_model(stage_one).state_dict()
    after = load_model(Path(two.out) / "last.safetensors").state_dict()
    assert after.keys() - before.keys() == {"head.linear_kd.weight", "head.linear_kd.bias"}
    for name, tensor in before.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-6)


def test_start_from_takes_over_what_fits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = create_model("meta_spikeformer_tiny", num_classes=10)
    save_model(source, tmp_path / "source.safetensors")
    other = create_model("meta_spikeformer_tiny", num_classes=3)
    head = other.head.linear.weight.clone()
    start_from(other, tmp_path / "source.safetensors")
    assert torch.equal(other.head.linear.weight, head)
    stem = "stages.0.embed.conv.conv.weight"
    assert torch.equal(other.state_dict()[stem], source.state_dict()[stem])
    larger = create_model("meta_spikeformer_tiny", depths=(1, 1, 1, 1, 2))
    with pytest.raises(CheckpointError, match=r"of another backbone: stages\.4\.blocks\.1"):
        start_from(larger, tmp_path / "source.safetensors")


def test_the_teacher_sees_its_own_normalisation_and_size() -> None:
    image = torch.randint(0, 256, (3, 12, 12), dtype=torch.uint8)
    pairs = ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7]), ([0.4, 0.4, 0.4], [0.2, 0.3, 0.4])
    students, teachers = (Preprocess(12, *pair, channels=3) for pair in pairs)
    seen = Teacher(lambda x: x, *pairs, image_size=12, device=CPU)(students(image)[None])
    torch.testing.assert_close(seen[0], teachers(image))
    assert Teacher(lambda x: x, *pairs, image_size=8, device=CPU)(seen).shape == (1, 3, 8, 8)


def test_our_checkpoints_teach(small: Small, stage_one: Path) -> None:
    distill = DistillSection(teacher=str(stage_one), kind="soft", weight=0.5, temperature=2.0)
    teacher = load_teacher(distill, small(), CPU)
    assert teacher(torch.zeros(2, 1, 16, 16)).shape == (2, 10)
    with pytest.raises(ConfigError, match=r"the teacher has model\.num_classes=10, the student 7"):
        load_teacher(distill, small("model.num_classes=7"), CPU)


def test_timm_teaches(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    from spikeformers.data._timm import import_timm

    timm = import_timm()
    create = timm.create_model

    def untrained(name: str, pretrained: bool) -> torch.nn.Module:
        assert pretrained
        return create(name, pretrained=False, num_classes=10)

    monkeypatch.setattr(timm, "create_model", untrained)
    distill = DistillSection(teacher="timm/test_vit", kind="hard", weight=0.5, temperature=1.0)
    colour = small("model.in_channels=3", "data.mean=[0, 0, 0]", "data.std=[1, 1, 1]")
    assert load_teacher(distill, colour, CPU)(torch.zeros(2, 3, 16, 16)).shape == (2, 10)
    with pytest.raises(ConfigError, match=r"the teacher has model\.in_channels=3, the student 1"):
        load_teacher(distill, small(), CPU)
    monkeypatch.undo()
    unknown = DistillSection(teacher="timm/nobody", kind="hard", weight=0.5, temperature=1.0)
    with pytest.raises(ConfigError, match=r"distill\.teacher=timm/nobody cannot be loaded"):
        load_teacher(unknown, small(), CPU)
