"""Folders and repositories of models: what is written, read and refused; nothing uses a network."""

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, errors
from safetensors.torch import load_file

import spikeformers as sf
from spikeformers.errors import CheckpointError, ConfigError, MissingExtraError
from spikeformers.models import Backbone, _hub
from spikeformers.neurons import LIF
from tests.helpers import enliven, randn

TINY = "meta_spikeformer_tiny"
FIGURE = {
    "data": "digits",
    "top1": 97.5,
    "seed": 3,
    "hardware": "2 cores | slow",
    "command": "spikeformers train digits train.seed=3",
    "images": 360,
}
CARD = {
    "classes": [str(digit) for digit in range(10)],
    "preprocessing": {"image_size": 28, "mean": [0.1] * 3, "std": [0.3] * 3, "crop": 0.875},
    "timesteps": 4,
    "license": "mit",
    "tags": ["digits"],
    "recipe": {"train": {"seed": 3}},
    "figures": [FIGURE],
}


@pytest.fixture
def model() -> Backbone:
    return enliven(sf.create_model(TINY, neuron=partial(LIF, tau=4.0))).eval()


@pytest.fixture
def folder(model: Backbone, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "shared", card=CARD)
    return tmp_path / "shared"


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_folder_comes_back_bit_for_bit(model: Backbone, folder: Path) -> None:
    assert names(folder) == ["README.md", "config.json", "model.safetensors", "recipe.yaml"]
    for loaded in (
        sf.from_pretrained(folder),
        Backbone.from_pretrained(str(folder), revision="ignored"),
        sf.load_model(folder / "model.safetensors"),
    ):
        assert loaded.config == model.config and not loaded.training
        assert loaded.official_source is None
        expected = model.state_dict()
        assert loaded.state_dict().keys() == expected.keys()
        for name, tensor in loaded.state_dict().items():
            assert torch.equal(tensor, expected[name]), name
        x = randn(2, 1, 3, 32, 32, seed=1)
        with torch.no_grad():
            assert torch.equal(loaded(x), model(x))
    assert load_file(folder / "model.safetensors").keys() == model.state_dict().keys()


def test_the_configuration_says_how_to_feed_the_model(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    usage = {key: CARD[key] for key in ("classes", "preprocessing", "timesteps")}
    assert config == {
        "spikeformers": sf.__version__,
        "model": {"name": TINY, "overrides": {"neuron": {"LIF": {"tau": 4.0}}}},
        "official_source": None,
        **usage,
    }
    assert sf.from_pretrained(folder).pretrained == config
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == CARD["recipe"]


def test_the_source_of_official_weights_is_kept(model: Backbone, tmp_path: Path) -> None:
    model.official_source = "owner/repository/file.py:function"
    model.save_pretrained(tmp_path)
    assert sf.from_pretrained(tmp_path).official_source == model.official_source
    assert model.official_source in (tmp_path / "README.md").read_text()


def test_the_card_carries_the_measured_figures(folder: Path) -> None:
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "spikeformers"
    assert card.data.license == "mit"
    assert {"spiking-neural-network", "digits"} <= set(card.data.tags)
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_value) == ("digits", 97.5)
    assert result.metric_args == {key: FIGURE[key] for key in ("seed", "hardware", "command")}
    for fact in (
        "| digits | 97.50 | 3 | 2 cores \\| slow | spikeformers train digits train.seed=3 | 360 |",
        "timesteps=4",
        "resized to 32 pixels",
        "10 classes",
    ):
        assert fact in card.text
    assert "No measured figure" not in card.text


def test_a_card_without_figures_says_so(model: Backbone, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert names(tmp_path) == ["README.md", "config.json", "model.safetensors"]
    card = ModelCard.load(tmp_path / "README.md")
    assert "No measured figure." in card.text
    assert card.data.license is None and card.data.eval_results is None
    assert "model-index" not in (tmp_path / "README.md").read_text()


def test_a_folder_of_ours_is_written_anew(model: Backbone, folder: Path) -> None:
    model.save_pretrained(folder)
    assert names(folder) == ["README.md", "config.json", "model.safetensors"]
    assert "No measured figure." in (folder / "README.md").read_text()


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors"])
def test_somebody_elses_files_are_not_overwritten(
    model: Backbone, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(CheckpointError, match=f"holds a {name} that save_pretrained did not"):
        model.save_pretrained(tmp_path)
    assert (tmp_path / name).read_text() == "{}" and names(tmp_path) == [name]


def test_what_cannot_be_rebuilt_is_not_saved(model: Backbone, folder: Path) -> None:
    before = {file: file.read_bytes() for file in folder.iterdir()}
    for changed in (sf.fold(model), Backbone(model.stages, None)):
        for where in (folder, folder.parent / "new"):
            with pytest.raises((CheckpointError, ConfigError)):
                changed.save_pretrained(where)
    assert {file: file.read_bytes() for file in folder.iterdir()} == before
    assert not (folder.parent / "new").exists()


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"licence": "mit"}, "the card has an unknown entry 'licence'; did you mean 'license'"),
        ({"preprocessing": {"image_size": 32}}, "preprocessing of the card lacks mean, std"),
        ({"figures": [{"data": "digits", "top1": 97.5}]}, "lacks seed, hardware, command"),
        ({"figures": [{**FIGURE, "top5": 99.0}]}, "unknown entry 'top5'; did you mean 'top1'"),
        ({"figures": [{**FIGURE, "top1": float("nan")}]}, "top1=nan .*expected percent"),
        ({"figures": [{**FIGURE, "top1": "97 %"}]}, "top1='97 %' .*expected percent"),
        ({"tags": [torch.zeros(1)]}, "plain data"),
    ],
)
def test_a_wrong_card_is_explained_before_anything_is_written(
    model: Backbone, tmp_path: Path, card: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        model.save_pretrained(tmp_path / "new", card=card)
    assert names(tmp_path) == []


def test_a_full_disk_is_one_sentence(
    model: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(CheckpointError, match=r"cannot write .*No space left"):
        model.save_pretrained(tmp_path / "new")


def change(folder: Path, **entries: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))


def pickle_weights(folder: Path) -> None:
    torch.save({"a": torch.zeros(1)}, folder / "model.safetensors")


def from_the_future(folder: Path) -> None:
    named = {"name": "meta_spikeformer_tinny", "overrides": {}}
    tensors, header = sf.models.read_checkpoint(folder / "model.safetensors")
    sf.models.write_checkpoint(folder / "model.safetensors", tensors, {**header, "model": named})
    change(folder, model=named)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "has no config.json: give a folder"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "names no model of spikeformers"),
        (lambda f: (f / "config.json").write_text('{"model_type": "vit"}'), "names no model"),
        (lambda f: (f / "model.safetensors").unlink(), "no checkpoint .*model.safetensors"),
        (pickle_weights, "damaged or no safetensors file"),
        (lambda f: change(f, model={"name": "other", "overrides": {}}), "contradicts itself"),
        (lambda f: change(f, model={"name": TINY, "overrides": {}}), "contradicts itself"),
        (from_the_future, "cannot be built .*did you mean 'meta_spikeformer_tiny'"),
    ],
)
def test_a_spoilt_folder_is_refused(
    folder: Path, spoil: Callable[[Path], Any], message: str
) -> None:
    spoil(folder)
    with pytest.raises(CheckpointError, match=message):
        sf.from_pretrained(folder)


def test_a_repository_is_downloaded_file_by_file(
    model: Backbone, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(repo_id: str, filename: str, **options: Any) -> str:
        asked.append((repo_id, filename, options))
        return str(folder / filename)

    monkeypatch.setattr(_hub, "hf_hub_download", download)
    loaded = sf.from_pretrained("owner/name", revision="v1", local_files_only=True)
    assert torch.equal(loaded.head.linear.weight, model.head.linear.weight)
    options = {"revision": "v1", "local_files_only": True}
    assert asked == [("owner/name", f, options) for f in ("config.json", "model.safetensors")]


def answer(kind: type[Exception]) -> Exception:
    """Return an error of the Hub without the request that it usually carries."""
    error = kind.__new__(kind)
    error.args = ("line one\nline two",)
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (answer(errors.RepositoryNotFoundError), "no such folder, nor a repository"),
        (answer(errors.GatedRepoError), "ask for access"),
        (answer(errors.RevisionNotFoundError), "no such revision"),
        (answer(errors.RemoteEntryNotFoundError), "lacks config.json"),
        (errors.LocalEntryNotFoundError("offline"), "Hub cannot be reached"),
        (errors.OfflineModeIsEnabled("offline mode\nis on"), "offline mode$"),
        (RuntimeError("timed out"), "timed out$"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def download(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(_hub, "hf_hub_download", download)
    with pytest.raises(CheckpointError, match=f"cannot load 'owner/name': .*{reason}"):
        sf.from_pretrained("owner/name")


def test_a_path_that_is_not_there_is_no_repository() -> None:
    with pytest.raises(CheckpointError, match="no such folder, and a repository is named OWNER"):
        sf.from_pretrained("runs/digits/shared")


def test_a_push_uploads_the_folder(
    model: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    class FakeHub:
        def __init__(self, token: str | None) -> None:
            calls.append(token)

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            calls.append((repo_id, options["private"]))
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id: str, folder_path: Path, **options: Any) -> str:
            shutil.copytree(folder_path, tmp_path / "uploaded")
            return f"https://hub/{repo_id}/{options['revision']}"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", FakeHub)
    options = dict(card=CARD, private=True, token="secret", branch="main")
    assert model.push_to_hub("owner/name", **options) == "https://hub/owner/name/main"
    assert calls == ["secret", ("owner/name", True)]
    model.save_pretrained(tmp_path / "saved", card=CARD)
    assert names(tmp_path / "uploaded") == names(tmp_path / "saved")
    for name in ("config.json", "model.safetensors", "recipe.yaml"):
        uploaded, saved = (tmp_path / where / name for where in ("uploaded", "saved"))
        assert uploaded.read_bytes() == saved.read_bytes()
    text = (tmp_path / "uploaded" / "README.md").read_text()
    assert 'sf.from_pretrained("owner/name")' in text and "secret" not in text


@pytest.mark.parametrize(
    "error", [errors.LocalTokenNotFoundError("no token"), RuntimeError("no route")]
)
def test_a_failed_push_is_one_sentence(
    model: Backbone, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    with pytest.raises(CheckpointError, match=r"cannot push to 'owner/name': no .*hf auth login"):
        model.push_to_hub("owner/name")
    with pytest.raises(CheckpointError, match="cannot push to 'a/b/c'"):
        model.push_to_hub("a/b/c")


def test_no_repository_is_made_for_what_cannot_be_loaded(
    model: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *_, **__: made.append(1))
    with pytest.raises(CheckpointError, match=f"not a {TINY}"):
        sf.fold(model).push_to_hub("owner/name")
    assert made == []


def test_without_huggingface_hub_the_extra_is_named(
    model: Backbone, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "spikeformers.models._hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for use in (
        lambda: sf.from_pretrained(folder),
        lambda: model.save_pretrained(folder),
        lambda: model.push_to_hub("owner/name"),
    ):
        with pytest.raises(MissingExtraError, match=r"pip install 'spikeformers\[hub\]'"):
            use()
