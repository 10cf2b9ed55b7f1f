"""The `spikeformers` command: one verb, one library call; parsing and printing only."""

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

import spikeformers as sf
from spikeformers import data, inspect, models, report, train
from spikeformers.analysis import audit
from spikeformers.errors import ConfigError, SpikeformersError
from spikeformers.tasks import Classification

SAMPLES_IN_REPORT = 24


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit code: 0, 2 for a mistake that one sentence explains."""
    args = _parse(arguments)
    try:
        result, text = args.run(args)
        print(json.dumps(result, indent=2) if args.json else text)
    except SpikeformersError as error:
        return _fail(str(error), 2)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        return _fail(f"cannot write or read{where}: {error.strerror or error}", 2)
    except KeyboardInterrupt:
        return _fail("interrupted; the same command goes on from the last finished epoch", 130)
    return 0


def _fail(message: str, code: int) -> int:
    print(f"spikeformers: {message}", file=sys.stderr)
    return code


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse; key=value pairs may stand anywhere, which argparse alone does not allow."""
    parser = _parser()
    args, rest = parser.parse_known_args(arguments)
    if any("=" not in word or word.startswith("-") for word in rest) or (
        rest and not hasattr(args, "overrides")
    ):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides += rest
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spikeformers",
        description="Spiking vision transformers: train, measure, convert, audit.",
        epilog="Example: spikeformers train digits && "
        "spikeformers eval runs/digits/best.safetensors",
    )
    parser.add_argument("--version", action="version", version=sf.__version__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, run: Any, summary: str, example: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(
            name, help=summary, description=f"{summary}.", epilog=f"Example: {example}"
        )
        sub.add_argument("--json", action="store_true", help="print the facts as one JSON object")
        sub.set_defaults(run=run)
        return sub

    sub = verb("train", _train, "Train a recipe, or resume it", "spikeformers train digits")
    sub.add_argument("recipe", help=f"{', '.join(train.list_recipes())}, or a YAML file")
    sub.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="recipe keys to change: out=DIR data.root=FOLDER train.epochs=10 train.seed=1",
    )
    sub.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU if there is one")

    sub = verb(
        "eval",
        _eval,
        "Evaluate a training checkpoint on its test split",
        "spikeformers eval runs/digits/best.safetensors --json",
    )
    sub.add_argument("checkpoint", help="best.safetensors or last.safetensors of a run")
    sub.add_argument(
        "overrides", nargs="*", metavar="data.root=FOLDER", help="where the data is now"
    )
    sub.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU if there is one")

    sub = verb(
        "predict",
        _predict,
        "Name what image files show",
        "spikeformers predict runs/digits/best.safetensors seven.png",
    )
    sub.add_argument("checkpoint", help="best.safetensors or last.safetensors of a run")
    sub.add_argument("images", nargs="+", metavar="IMAGE", help="image files")

    sub = verb("list", _list, "List models", "spikeformers list 'meta_spikeformer*'")
    sub.add_argument("pattern", nargs="?", default="*", help="shell pattern")

    sub = verb(
        "info", _info, "Show a model's stages and sizes", "spikeformers info meta_spikeformer_15m"
    )
    sub.add_argument("model", help="a model's name or a checkpoint")

    sub = verb(
        "audit",
        _audit,
        "Prove on the graph which operations are additions only",
        "spikeformers audit meta_spikeformer_15m --image-size 64",
    )
    sub.add_argument("model", help="a model's name or a checkpoint")
    sub.add_argument("--image-size", type=int, default=64, help="side in pixels (64)")
    sub.add_argument("--timesteps", type=int, default=2, help="time steps (2)")

    sub = verb(
        "convert",
        _convert,
        "Convert an official checkpoint; nothing in it is executed",
        "spikeformers convert 55M.pth --source metaspikformer_8_512 -o 55m.safetensors",
    )
    sub.add_argument("checkpoint", help="the authors' .pth or .safetensors file")
    sub.add_argument("--source", required=True, help="owner/repository/file:callable, or its end")
    sub.add_argument("-o", "--output", required=True, help="the .safetensors file to write")
    sub.add_argument("--ema", action="store_true", help="take the moving average of the weights")
    sub.add_argument("--corrected", action="store_true", help="repair defects of the official code")
    sub.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="arguments of the official constructor: num_classes=10 kd=true",
    )

    sub = verb("report", _report, "Write report.html of a run", "spikeformers report runs/digits")
    sub.add_argument("run_folder", metavar="RUN", help="the folder that training wrote")

    verb("doctor", _doctor, "Say what works here, and why", "spikeformers doctor")
    return parser


def _train(args: argparse.Namespace) -> tuple[Any, str]:
    recipe = train.load_recipe(args.recipe, args.overrides)
    metrics = train.fit(recipe, args.device)
    page = _write_report(Path(recipe.out))
    metrics.pop("confusion")
    return metrics, (
        f"top-1 {metrics['top1']:.2f} % (epoch {metrics['best_epoch']} of {metrics['epochs']}; "
        f"last epoch {metrics['top1_last']:.2f} %), {metrics['seconds']:.0f} s of training\n"
        f"report: {page}"
    )


def _write_report(folder: Path) -> Path:
    """Gather what there is to see of the best checkpoint and write the page."""
    model, recipe, classes = train.load_trained(folder / "best.safetensors")
    test_set = data.load_dataset(recipe.data.name, recipe.data.root, "test")
    preprocess = train.preprocessing(recipe.data, test_set.channels)
    samples = [test_set[i] for i in range(min(SAMPLES_IN_REPORT, len(test_set)))]
    pixels = torch.stack([preprocess.resize(image) for image, _ in samples])
    inspect.gather(
        model,
        data.direct(preprocess.normalise(pixels), recipe.train.timesteps),
        (pixels * 255).round().to(torch.uint8),
        torch.tensor([label for _, label in samples]),
        classes,
        folder,
    )
    return report.write_report(folder)


def _eval(args: argparse.Namespace) -> tuple[Any, str]:
    options = _key_values(args.overrides)
    if set(options) - {"data.root"}:
        raise ConfigError(f"eval takes data.root=FOLDER only, got {', '.join(options)}")
    figures = train.evaluate_checkpoint(args.checkpoint, options.get("data.root"), args.device)
    return figures, (
        f"top-1 {figures['top1']:.2f} %, top-5 {figures['top5']:.2f} % "
        f"on {figures['images']} images of {figures['data']}"
    )


def _predict(args: argparse.Namespace) -> tuple[Any, str]:
    model, recipe, classes = train.load_trained(args.checkpoint)
    preprocess = train.preprocessing(recipe.data, recipe.model.in_channels)
    task = Classification(recipe.train.timesteps)
    rows = []
    for path in args.images:
        image = preprocess(data.read_image(path, recipe.model.in_channels))
        chances = task.predict(model, image[None])[-1, 0].softmax(0)
        best = chances.topk(min(3, len(chances)))
        rows.append(
            {
                "image": path,
                "classes": [classes[i] for i in best.indices],
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


def _list(args: argparse.Namespace) -> tuple[Any, str]:
    sizes = {}
    for name in sf.list_models(args.pattern):
        with torch.device("meta"):
            sizes[name] = _size(sf.create_model(name))
    return sizes, "\n".join(f"{name:32} {size:>13,} parameters" for name, size in sizes.items())


def _open(name: str) -> models.Backbone:
    """Return a model by registered name, or from a checkpoint file."""
    is_file = Path(name).suffix == ".safetensors" or Path(name).exists()
    return sf.load_model(name) if is_file else sf.create_model(name)


def _info(args: argparse.Namespace) -> tuple[Any, str]:
    model = _open(args.model)
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


def _audit(args: argparse.Namespace) -> tuple[Any, str]:
    model = _open(args.model)
    image = torch.zeros(1, model.in_channels, args.image_size, args.image_size)
    result = audit(model, data.direct(image, args.timesteps))
    return result.as_dict(), str(result)


def _convert(args: argparse.Namespace) -> tuple[Any, str]:
    state = models.read_official_file(args.checkpoint, args.ema)
    options = _key_values(args.overrides)
    model = sf.from_official(state, args.source, corrected=args.corrected, **options)
    sf.save_model(model, args.output)
    facts = {"output": args.output, "source": model.official_source, "tensors": len(state)}
    return facts, f"{args.output}: {len(state)} tensors from {model.official_source}"


def _report(args: argparse.Namespace) -> tuple[Any, str]:
    page = str(_write_report(Path(args.run_folder)))
    return {"report": page}, page


def _doctor(args: argparse.Namespace) -> tuple[Any, str]:
    del args
    device = train.default_device()
    extras = {
        "train": ["torchvision", "sklearn", "PIL", "tqdm", "matplotlib"],
    }
    missing = {
        extra: [name for name in names if importlib.util.find_spec(name) is None]
        for extra, names in extras.items()
    }
    facts = {
        "environment": train.environment(device),
        "kernels": {"spikeformers::lif": "eager PyTorch, in place (no native kernel built)"},
        "missing": missing,
    }
    lines = [f"{key:14} {value}" for key, value in facts["environment"].items()]
    lines += [f"{op:18} {kernel}" for op, kernel in facts["kernels"].items()]
    for extra, names in missing.items():
        fix = f"missing {', '.join(names)}: pip install 'spikeformers[{extra}]'"
        lines.append(f"extra {extra:8} {fix if names else 'complete'}")
    return facts, "\n".join(lines)


def _key_values(pairs: Sequence[str]) -> dict[str, Any]:
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"{pair!r} is no option: write key=value")
        options[key] = yaml.safe_load(value)
    return options
