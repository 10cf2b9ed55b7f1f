"""Models for others: a folder of weights, configuration and model card, here or on a Hub.

    model.save_pretrained("folder", card={"timesteps": 4, "license": "mit"})
    model.push_to_hub("owner/name", card={...})
    model = sf.from_pretrained("owner/name", revision="v1")

`Backbone` reads this file when one of these is called, and not before: nothing else needs
huggingface_hub. Loading reads two files, JSON and safetensors, and executes nothing in them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import nn

import spikeformers
from spikeformers.errors import CheckpointError, ConfigError, MissingExtraError
from spikeformers.models._backbone import Backbone
from spikeformers.models._registry import nearest
from spikeformers.models._weights import describe_model, read_checkpoint, rebuild_model, save_model

try:
    from huggingface_hub import (
        EvalResult,
        ModelCard,
        ModelCardData,
        ModelHubMixin,
        hf_hub_download,
    )
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
except ImportError as error:
    raise MissingExtraError("huggingface_hub", "hub") from error

_WEIGHTS, _CONFIG, _CARD, _RECIPE = "model.safetensors", "config.json", "README.md", "recipe.yaml"

# What a card may say; the first three also stand in config.json, for programs.
_USAGE = ("classes", "preprocessing", "timesteps")
_ENTRIES = (*_USAGE, "license", "tags", "recipe", "figures")
_PREPROCESSING = ("image_size", "mean", "std", "crop"), ("image_size", "mean", "std")
_NEEDED = ("data", "top1", "seed", "hardware", "command")
_FIGURE = (*_NEEDED, "images", "timesteps", "minutes", "note")

# The first that fits says why; the order matters, because some are kinds of others.
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (HFValidationError, "there is no such folder, and a repository is named OWNER/NAME"),
    (GatedRepoError, "ask for access on its page of the Hub, then 'hf auth login'"),
    (RepositoryNotFoundError, "there is no such folder, nor a repository that this login may read"),
    (RevisionNotFoundError, "it has no such revision"),
    (LocalEntryNotFoundError, "it is not in the local cache, and the Hub cannot be reached"),
    (EntryNotFoundError, f"it lacks {_CONFIG} or {_WEIGHTS}, so it was not made by spikeformers"),
)


class HubModel(
    ModelHubMixin,
    library_name="spikeformers",
    tags=["spikeformers", "spiking-neural-network", "vision-transformer"],
):
    """A backbone and its card, as huggingface_hub sees them.

    Args:
        backbone: A model made by `create_model`, as it was made: not folded.
        card: Plain data; see `Backbone.save_pretrained`.

    Raises:
        ConfigError: If an entry of the card is unknown, or a figure lacks what makes it measured.
    """

    def __init__(self, backbone: Backbone, card: Mapping[str, Any] | None = None) -> None:
        self.backbone = backbone
        self.card = _checked(card or {})

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write the folder; one that is already there must be of our making."""
        folder = Path(save_directory)
        there = [name for name in (_WEIGHTS, _CONFIG, _CARD, _RECIPE) if (folder / name).exists()]
        if there and not _is_ours(folder):
            raise CheckpointError(
                f"{folder} holds a {there[0]} that save_pretrained did not write: give a new folder"
            )
        # Weights first: what cannot be saved is refused before an older folder is touched.
        save_model(self.backbone, folder / _WEIGHTS)
        try:
            return super().save_pretrained(folder, **options)
        except OSError as error:
            raise CheckpointError(f"cannot write {folder}: {error}") from error

    def _save_pretrained(self, save_directory: Path) -> None:
        usage = {key: self.card[key] for key in _USAGE if key in self.card}
        config = {
            "spikeformers": spikeformers.__version__,
            **describe_model(self.backbone),
            **usage,
        }
        (save_directory / _CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        # The mixin keeps a card that is there, but its figures belong to other weights.
        for name in (_CARD, _RECIPE):
            (save_directory / name).unlink(missing_ok=True)
        if "recipe" in self.card:
            text = yaml.safe_dump(self.card["recipe"], sort_keys=False)
            (save_directory / _RECIPE).write_text(text)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """Return the card; `name` is where the model can be loaded from."""
        del args
        name = kwargs.get("name", "OWNER/NAME")
        body = "\n\n".join(
            [
                f"# {self.backbone.config.name}",
                _origin(self.backbone),
                _example(name, self.card),
                *_usage(self.backbone, self.card),
                "## Measured",
                _figures(self.card),
            ]
        )
        return ModelCard(f"---\n{self._metadata().to_yaml()}\n---\n\n{body}\n")

    def _metadata(self) -> ModelCardData:
        info, card = self._hub_mixin_info.model_card_data, self.card
        results = [
            EvalResult(
                task_type="image-classification",
                dataset_type=figure["data"],
                dataset_name=figure["data"],
                metric_type="accuracy",
                metric_name="top-1 accuracy in percent",
                metric_value=figure["top1"],
                metric_args={key: figure[key] for key in ("seed", "hardware", "command")},
            )
            for figure in card.get("figures", ())
        ]
        return ModelCardData(
            library_name=info.library_name,
            license=card.get("license"),
            tags=[*(info.tags or ()), *card.get("tags", ())],
            pipeline_tag="image-classification" if "classes" in card else None,
            model_name=self.backbone.config.name if results else None,
            eval_results=results or None,
        )

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the folder in one commit and return its address."""
        # What nobody could load is refused before a repository is made for it.
        rebuild_model(self.backbone.state_dict(), describe_model(self.backbone))
        try:
            return super().push_to_hub(repo_id, model_card_kwargs={"name": repo_id}, **options)
        # See `_find`.
        except Exception as error:
            raise CheckpointError(
                f"cannot push to {repo_id!r}: {_first_line(error)} (to log in: hf auth login)"
            ) from error

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, **options: Any
    ) -> "HubModel":
        """Load a folder or a repository; the mixin's own would go on without a configuration."""
        name = pretrained_model_name_or_path
        config = _read_config(_find(name, _CONFIG, options))
        tensors, header = read_checkpoint(_find(name, _WEIGHTS, options))
        if header.get("model") != config["model"]:
            raise CheckpointError(
                f"{name} contradicts itself: {_CONFIG} names {config['model']}, "
                f"{_WEIGHTS} {header.get('model')}; download or save it again"
            )
        try:
            backbone = rebuild_model(tensors, header).eval()
        except (ConfigError, TypeError) as error:
            raise CheckpointError(
                f"{name} was saved by spikeformers {config['spikeformers']} and cannot be built "
                f"by {spikeformers.__version__}: {error}"
            ) from error
        backbone.pretrained = config
        return cls(backbone)


def _find(name: str | Path, file: str, options: Mapping[str, Any]) -> Path:
    """Return a file of a folder, or of a repository after downloading it."""
    if Path(name).is_dir():
        return Path(name) / file
    try:
        return Path(hf_hub_download(str(name), file, **options))
    # The Hub's client passes on what its HTTP and transfer libraries raise: no common base.
    except Exception as error:
        reasons = (reason for kind, reason in _REASONS if isinstance(error, kind))
        reason = next(reasons, _first_line(error))
        raise CheckpointError(f"cannot load {str(name)!r}: {reason}") from error


def _read_config(path: Path) -> dict[str, Any]:
    """Return a configuration of ours."""
    if not path.is_file():
        raise CheckpointError(
            f"{path.parent} has no {_CONFIG}: give a folder that save_pretrained wrote, "
            "or load a single file with load_model"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    match config:
        case {"spikeformers": str(), "model": {"name": str(), "overrides": dict()}}:
            return dict(config)
    raise CheckpointError(f"{path} names no model of spikeformers: it was made by something else")


def _is_ours(folder: Path) -> bool:
    try:
        return bool(_read_config(folder / _CONFIG))
    except CheckpointError:
        return False


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _checked(card: Mapping[str, Any]) -> dict[str, Any]:
    """Return the card if it says only what a card may say, completely."""
    _check_keys("the card", card, _ENTRIES)
    if "preprocessing" in card:
        _check_keys("preprocessing of the card", card["preprocessing"], *_PREPROCESSING)
    for figure in card.get("figures", ()):
        _check_keys("a figure of the card", figure, _FIGURE, _NEEDED)
        if type(figure["top1"]) not in (int, float) or not 0 <= figure["top1"] <= 100:
            raise ConfigError(f"top1={figure['top1']!r} on the card: expected percent, 0 to 100")
    try:
        json.dumps(dict(card), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the card must be plain data, as JSON holds it: {error}") from error
    return dict(card)


def _check_keys(
    what: str, given: Mapping[str, Any], known: Sequence[str], needed: Sequence[str] = ()
) -> None:
    for key in given:
        if key not in known:
            raise ConfigError(f"{what} has an unknown entry {key!r}{nearest(key, known)}")
    missing = [key for key in needed if given.get(key) is None]
    if missing:
        raise ConfigError(f"{what} lacks {', '.join(missing)}: without it, leave the whole out")


def _origin(model: Backbone) -> str:
    source = f" The weights come from `{model.official_source}`." if model.official_source else ""
    return (
        f"A spiking network with {_size(model):,} parameters, saved with spikeformers "
        f"{spikeformers.__version__}.{source}"
    )


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _example(name: str, card: Mapping[str, Any]) -> str:
    return (
        "```python\n"
        "import spikeformers as sf\n\n"
        f'model = sf.from_pretrained("{name}")  # or the path of this folder\n'
        f"x = sf.encode.direct(images, timesteps={card.get('timesteps', 'T')})\n"
        "scores = model.readout(model(x))  # [B, K]\n"
        "```"
    )


def _usage(model: Backbone, card: Mapping[str, Any]) -> list[str]:
    """Return sentences on what goes in and comes out, as far as the card knows."""
    given, said = card.get("preprocessing", {}), []
    if given:
        size = given["image_size"]
        said.append(
            f"`images` is `[B, {model.in_channels}, {size}, {size}]`: the short side resized to "
            f"{round(size / (given.get('crop') or 1))} pixels, the centre cut out, scaled to 0..1, "
            f"minus {given['mean']}, divided by {given['std']}."
        )
    if "classes" in card:
        said.append(f"The names of the {len(card['classes'])} classes stand in `{_CONFIG}`.")
    if "recipe" in card:
        said.append(f"`{_RECIPE}` is the complete training: `spikeformers train {_RECIPE}`.")
    return ["## Use", " ".join(said)] if said else []


def _figures(card: Mapping[str, Any]) -> str:
    figures = card.get("figures", ())
    if not figures:
        return "No measured figure."
    columns = [key for key in _FIGURE if any(figure.get(key) is not None for figure in figures)]
    titles = ["top-1 %" if key == "top1" else key for key in columns]
    rows = [titles, ["---"] * len(columns)]
    rows += [[_cell(figure.get(key)) for key in columns] for figure in figures]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    return "-" if value is None else str(value).replace("|", "\\|").replace("\n", " ")
