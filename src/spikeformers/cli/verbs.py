"""What each verb does: arguments in, facts for programs and text for people out."""

import argparse
import fnmatch
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

import spikeformers as sf
from spikeformers import data, inspect, models, report, train
from spikeformers.errors import ConfigError, DataError
from spikeformers.ops import gpu, native
from spikeformers.tasks import Classification
from spikeformers.train.log import write_json
from spikeformers.types import ANALOG, BINARY, Alphabet

CANDIDATES = 400
"""Test images among which the report finds mistakes worth showing."""

EVENT_CANDIDATES = 100
"""The same for recordings of events: each is as many frames as the model has steps."""

INPUTS = {"analog": ANALOG, "binary": BINARY, "counts": Alphabet(0, 255)}
"""What `audit` can be told about the input."""

Result = tuple[Any, str]
"""The facts as plain data, and the same for people."""


def train_recipe(args: argparse.Namespace) -> Result:
    """Train, and write the report."""
    recipe = train.load_recipe(args.recipe, args.overrides)
    metrics = train.fit(recipe, args.device, tensorboard=args.tensorboard)
    page = _report_of(Path(recipe.out)) if train.is_first_rank() else None
    metrics.pop("confusion", None)
    where = f"epoch {metrics['best_epoch']} of {metrics['epochs']}"
    result = f"error {metrics['loss']:.4f} of hidden pixels ({where})"
    if recipe.pretrain is None:
        last = f"last epoch {metrics['top1_last']:.2f} %"
        result = f"top-1 {metrics['top1']:.2f} % ({where}; {last})"
    return metrics, f"{result}, {metrics['seconds']:.0f} s of training\nreport: {page}"


def _report_of(folder: Path) -> Path:
    """Gather what there is to see of the best checkpoint and write the page."""
    model, recipe, progress = train.load_run(folder / "best.safetensors")
    if recipe.pretrain is not None:
        return report.write_report(folder)
    model.float()
    timesteps = recipe.train.timesteps
    test_set = data.load_dataset(recipe.data.name, recipe.data.root, "test", timesteps)
    preprocess = train.preprocessing(recipe.data, test_set.channels)
    samples = _some(test_set, recipe.data.unreadable == "skip")
    seen = torch.stack([preprocess.resize(image) for image, _ in samples])

    def encode(images: torch.Tensor) -> torch.Tensor:
        return data.over_time(preprocess.normalise(images), timesteps)

    inspect.gather(
        model,
        seen,
        torch.tensor([label for _, label in samples]),
        progress["classes"],
        folder,
        encode=encode,
        picture=preprocess.picture,
    )
    return report.write_report(folder)


def _some(test_set: data.ImageDataset, skips: bool) -> list[tuple[torch.Tensor, int]]:
    """Return images from the whole length of a set, which may be sorted by class."""
    count = min(EVENT_CANDIDATES if test_set.channels == 2 else CANDIDATES, len(test_set))
    samples = []
    for i in range(count):
        try:
            samples.append(test_set[i * len(test_set) // count])
        except DataError:
            if not skips:
                raise
    return samples


def evaluate(args: argparse.Namespace) -> Result:
    """Measure a checkpoint on its test split."""
    root = data_root("eval", args.overrides)
    figures = train.evaluate_checkpoint(args.checkpoint, root, args.device)
    rate = (
        "" if figures["firing_rate"] is None else f"; neurons fire at {figures['firing_rate']:.1%}"
    )
    result = (
        f"top-1 {figures['top1']:.2f} %, top-5 {figures['top5']:.2f} %"
        if "top1" in figures
        else f"error {figures['loss']:.4f} of hidden pixels"
    )
    return figures, f"{result} on {figures['images']} images of {figures['data']}{rate}"


def verify(args: argparse.Namespace) -> Result:
    """Compare a checkpoint with its recipe."""
    recipe = train.load_recipe(args.recipe, args.overrides)
    facts = train.verify(
        args.recipe if args.recipe in train.list_recipes() else Path(args.recipe).stem,
        recipe,
        args.checkpoint,
        root=recipe.data.root,
        device=args.device,
        record=args.record if train.is_first_rank() else None,
    )
    claim = "no figure" if facts["expected"] is None else f"{facts['expected']:.2f} %"
    if facts["expected"] is not None:
        claim += (
            f" (tolerance {facts['tolerance'] or 0:g}, mark {facts['mark']}: {facts['source']})"
        )
    return facts, f"{facts['verdict']}: top-1 {facts['top1']:.2f} %, expected {claim}"


def compare(args: argparse.Namespace) -> Result:
    """Compare models, and write the page."""
    models = [word for word in args.models if "=" not in word]
    overrides = [word for word in [*args.models, *args.overrides] if "=" in word]
    facts = train.compare(
        models,
        args.recipe or _recipe_named_like(args.data),
        args.output,
        overrides=overrides if args.data is None else [f"data.root={args.data}", *overrides],
        minutes=args.minutes,
        epochs=args.epochs,
        device=args.device,
    )
    page = report.write_comparison(args.output)
    failed = {row["model"]: row["error"] for row in facts["rows"] if row["error"]}
    lines = [_aligned(report.comparison_table(facts))]
    lines += [f"{model}: {error}" for model, error in failed.items()]
    return facts | ({"failed": list(failed)} if failed else {}), "\n".join(
        [*lines, f"report: {page}"]
    )


def _recipe_named_like(folder: str | None) -> str:
    name = "" if folder is None else Path(folder).resolve().name.lower().replace("-", "_")
    known = train.list_recipes()
    if name not in known:
        which = f"no recipe is named like the folder {folder}" if folder else "there is no --data"
        small = ", ".join(name for name in known if "/" not in name)
        raise ConfigError(f"{which}: name one with --recipe, for example {small}")
    return name


def _aligned(table: list[list[str]]) -> str:
    """Write a table in columns, texts to the left and numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 1 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in table
    )


def predict(args: argparse.Namespace) -> Result:
    """Name what images show."""
    model, recipe, progress = train.load_trained(args.checkpoint)
    model.float()
    preprocess = train.preprocessing(recipe.data, recipe.model.in_channels)
    task = Classification(recipe.train.timesteps)
    rows = []
    for path in args.images:
        if preprocess.of_events:
            image = preprocess(data.read_recording(recipe.data.name, path, task.timesteps))
        else:
            image = preprocess(data.read_image(path, recipe.model.in_channels))
        chances = task.predict(model, image[None])[-1, 0].softmax(0)
        best = chances.topk(min(3, len(chances)))
        rows.append(
            {
                "image": path,
                "classes": [progress["classes"][i] for i in best.indices],
                "probabilities": [round(p, 4) for p in best.values.tolist()],
            }
        )
    lines = [
        f"{row['image']}: "
        + ", ".join(
            f"{name} {100 * p:.1f} %"
            for name, p in zip(row["classes"], row["probabilities"], strict=True)
        )
        for row in rows
    ]
    return rows, "\n".join(lines)


def list_names(args: argparse.Namespace) -> Result:
    """List models and their sizes, or recipes and what they expect."""
    return _list_recipes(args.pattern) if args.recipes else _list_models(args.pattern)


def _list_recipes(pattern: str) -> Result:
    names = fnmatch.filter(train.list_recipes(), pattern)
    expected = {name: train.load_recipe(name).expected.top1 for name in names}
    lines = [
        name if top1 is None else f"{name:42} {top1:6.2f} % top-1"
        for name, top1 in expected.items()
    ]
    return expected, "\n".join(lines)


def _list_models(pattern: str) -> Result:
    sizes = {}
    for name in sf.list_models(pattern):
        with torch.device("meta"):
            sizes[name] = _size(sf.create_model(name))
    return sizes, "\n".join(f"{name:32} {size:>13,} parameters" for name, size in sizes.items())


def open_model(name: str) -> models.Backbone:
    """Return a model by registered name, or from a checkpoint file."""
    is_file = Path(name).suffix == ".safetensors" or Path(name).exists()
    return sf.load_model(name) if is_file else sf.create_model(name)


def info(args: argparse.Namespace) -> Result:
    """Show what a model is made of."""
    model = open_model(args.model)
    facts = {
        "model": model.config.name,
        "overrides": dict(model.config.overrides),
        "in_channels": model.in_channels,
        "parameters": _size(model),
        "stages": [
            {"channels": channels, "stride": stride, "parameters": _size(stage)}
            for channels, stride, stage in zip(
                model.channels, model.strides, model.stages, strict=True
            )
        ],
        "head_parameters": 0 if model.head is None else _size(model.head),
    }
    lines = [
        f"{model.config.name}: {facts['parameters']:,} parameters, {model.in_channels} channels"
    ]
    for i, stage in enumerate(facts["stages"]):
        lines.append(
            f"  stage {i}  stride {stage['stride']:>2}  {stage['channels']:>4} channels  "
            f"{stage['parameters']:>12,} parameters"
        )
    lines.append(f"  head {facts['head_parameters']:>43,} parameters")
    return facts, "\n".join(lines)


def _size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def convert(args: argparse.Namespace) -> Result:
    """Convert an official checkpoint."""
    state = models.read_official_file(args.checkpoint, args.ema)
    options = _key_values(args.overrides)
    model = sf.from_official(state, args.source, corrected=args.corrected, **options)
    sf.save_model(model, args.output)
    facts = {"output": args.output, "source": model.official_source, "tensors": len(state)}
    return facts, f"{args.output}: {len(state)} tensors from {model.official_source}"


def write_report(args: argparse.Namespace) -> Result:
    """Write the page of a run, or of a comparison."""
    folder = Path(args.run_folder)
    is_comparison = (folder / "compare.json").exists()
    page = str(report.write_comparison(folder) if is_comparison else _report_of(folder))
    return {"report": page}, page


def share(args: argparse.Namespace) -> Result:
    """Make a run ready for others."""
    folder = train.share_run(args.run_folder, args.output, license=args.license, push=args.push)
    facts = {"folder": str(folder), "pushed_to": args.push}
    return facts, f"{folder}" + (f", and {args.push} on the Hub" if args.push else "")


def doctor(args: argparse.Namespace) -> Result:
    """Say what works here."""
    del args
    device = train.default_device()
    extras = {
        "train": ["torchvision", "sklearn", "PIL", "tqdm", "matplotlib"],
        "timm": ["timm"],
        "hub": ["huggingface_hub"],
        "tensorboard": ["tensorboard"],
        "export": ["onnx", "onnxruntime", "nir"],
        "gpu": ["triton"],
        "spikingjelly": ["spikingjelly"],
    }
    missing = {
        extra: [name for name in names if importlib.util.find_spec(name) is None]
        for extra, names in extras.items()
    }
    facts = {
        "environment": train.environment(device),
        "kernels": {
            **{"level": native.level(), "why": native.WHY, "each": native.kernels()},
            "gpu": gpu.state(),
        },
        "missing": missing,
    }
    lines = [f"{key:14} {value}" for key, value in facts["environment"].items()]
    lines.append(f"{'kernels':14} {native.level() or 'PyTorch'}: {native.WHY}")
    lines += [f"  {kernel:24} {level}" for kernel, level in native.kernels().items()]
    lines.append(f"{'GPU kernels':14} {gpu.state()}")
    for extra, names in missing.items():
        fix = f"missing {', '.join(names)}: pip install 'spikeformers[{extra}]'"
        lines.append(f"extra {extra:8} {fix if names else 'complete'}")
    return facts, "\n".join(lines)


def record(args: argparse.Namespace, facts: dict[str, Any]) -> None:
    """Keep the facts of a verb in the file that `--record` names; in a run, `report` reads them."""
    if args.record is not None:
        write_json(Path(args.record), facts)


def data_root(verb: str, pairs: Sequence[str]) -> str | None:
    """Return the folder of `data.root=FOLDER`, the only thing that some verbs can change."""
    options = _key_values(pairs)
    if set(options) - {"data.root"}:
        raise ConfigError(f"{verb} takes data.root=FOLDER only, got {', '.join(options)}")
    return options.get("data.root")


def _key_values(pairs: Sequence[str]) -> dict[str, Any]:
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"{pair!r} is no option: write key=value")
        options[key] = yaml.safe_load(value)
    return options
