"""The `spikeformers` command: one verb, one library call; parsing and printing only."""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import spikeformers as sf
from spikeformers import train
from spikeformers.cli import analysis, chip, export, integers, jitter, verbs
from spikeformers.errors import SpikeformersError, StoppedError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        The exit code: 0; 1 where a check came out negative; 2 for a mistake that one sentence
        explains; 128 and the signal's number where a signal stopped a run.
    """
    args = _parse(arguments)
    try:
        # Under torchrun all processes do the same work, one prints, and one error is shown.
        with train.joined(args.device) as ranks:
            result, text = args.run(args)
        if ranks.is_first:
            print(json.dumps(result, indent=2) if args.json else text)
        return int(_is_negative(result))
    except StoppedError as error:
        return _fail(str(error), 128 + error.signal)
    except SpikeformersError as error:
        return _fail(str(error), 2)
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        return _fail(f"cannot write or read{where}: {error.strerror or error}", 2)
    except KeyboardInterrupt:
        return _fail("interrupted; training goes on from its last checkpoint", 130)


def _is_negative(result: Any) -> bool:
    return isinstance(result, dict) and (result.get("verdict") == "below" or "failed" in result)


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
    subparsers = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, run: Any, summary: str, example: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(
            name, help=summary, description=f"{summary}.", epilog=f"Example: {example}"
        )
        sub.add_argument("--json", action="store_true", help="print the facts as one JSON object")
        sub.set_defaults(run=run, device=None)
        return sub

    sub = verb(
        "train",
        verbs.train_recipe,
        "Train a recipe, or resume it; under torchrun on many processes",
        "spikeformers train digits, or: torchrun --nproc-per-node 8 -m spikeformers train digits",
    )
    sub.add_argument("recipe", help="one that `spikeformers list --recipes` names, or a YAML file")
    sub.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="recipe keys to change: out=DIR data.root=FOLDER train.epochs=10 train.seed=1",
    )
    sub.add_argument(
        "--tensorboard", action="store_true", help="write TensorBoard's files into out/tensorboard"
    )
    _add_device(sub)

    sub = verb(
        "eval",
        verbs.evaluate,
        "Evaluate a training checkpoint on its test split",
        "spikeformers eval runs/digits/best.safetensors --json",
    )
    sub.add_argument("checkpoint", help="best.safetensors or last.safetensors of a run")
    sub.add_argument(
        "overrides", nargs="*", metavar="data.root=FOLDER", help="where the data is now"
    )
    _add_device(sub)

    sub = verb(
        "verify",
        verbs.verify,
        "Compare a checkpoint's accuracy with what its recipe expects (exit code 1: below)",
        "spikeformers verify digits runs/digits/best.safetensors",
    )
    sub.add_argument("recipe", help="the recipe that made the checkpoint: a name or a YAML file")
    sub.add_argument("checkpoint", help="best.safetensors or last.safetensors of a run")
    sub.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="recipe keys that the run changed"
    )
    sub.add_argument("--record", metavar="FILE", help="JSON file to keep the result in")
    _add_device(sub)

    sub = verb(
        "compare",
        verbs.compare,
        "Train or evaluate several models under one budget on the same data (exit code 1: one "
        "failed)",
        "spikeformers compare meta_spikeformer_xs32 meta_spikeformer_s32 "
        "--data data/fashion_mnist --minutes 10 train.seed=1",
    )
    sub.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="names that `spikeformers list` shows, or checkpoints, which are only measured",
    )
    sub.add_argument("--data", metavar="DIR", help="the folder of the data, as data.root=DIR")
    sub.add_argument(
        "--recipe", help="every setting but the model: a name or a YAML file (named like DIR)"
    )
    budget = sub.add_mutually_exclusive_group()
    budget.add_argument(
        "--minutes",
        type=float,
        help="of training for each model: as many epochs as fit, with the whole schedule",
    )
    budget.add_argument("--epochs", type=int, help="for each model, instead (the recipe's)")
    sub.add_argument(
        "-o",
        "--output",
        default="runs/compare",
        metavar="FOLDER",
        help="for compare.json, compare.html and the runs (runs/compare); repeated, it goes on",
    )
    sub.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="recipe keys to change, for all models: train.seed=1 train.batch_size=32",
    )
    _add_device(sub)

    sub = verb(
        "predict",
        verbs.predict,
        "Name what image files show",
        "spikeformers predict runs/digits/best.safetensors seven.png",
    )
    sub.add_argument("checkpoint", help="best.safetensors or last.safetensors of a run")
    sub.add_argument("images", nargs="+", metavar="IMAGE", help="images or recordings")

    sub = verb(
        "list",
        verbs.list_names,
        "List models, or recipes",
        "spikeformers list 'meta_spikeformer*', or: spikeformers list --recipes 'cifar10/*'",
    )
    sub.add_argument("pattern", nargs="?", default="*", help="shell pattern")
    sub.add_argument("--recipes", action="store_true", help="recipes and what they expect")

    sub = verb(
        "info",
        verbs.info,
        "Show a model's stages and sizes",
        "spikeformers info meta_spikeformer_15m",
    )
    sub.add_argument("model", help="a model's name or a checkpoint")

    sub = verb(
        "audit",
        analysis.audit,
        "Prove on the graph which operations are additions only (exit code 1: see --fail-on)",
        "spikeformers audit meta_spikeformer_15m --image-size 64 --fail-on mac",
    )
    sub.add_argument("model", help="a model's name or a checkpoint")
    sub.add_argument(
        "--image-size", type=int, help="side in pixels (64, or the only one that the model takes)"
    )
    sub.add_argument("--timesteps", type=int, help="time steps (2)")
    sub.add_argument(
        "--input",
        choices=list(verbs.INPUTS),
        default="analog",
        help="what the model is shown: images, events, or counts of events up to 255 (analog)",
    )
    sub.add_argument(
        "--verify",
        metavar="DATA",
        help="compare the claims with all values on a test split: a recipe, or the folder of a "
        "training checkpoint's data",
    )
    sub.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="keys of that recipe: data.root=FOLDER"
    )
    _add_device(sub)
    sub.add_argument(
        "--fail-on",
        choices=list(analysis.GATES),
        help="exit with 1 where an operation multiplies (mac), or also where an integer costs "
        "several additions (integer)",
    )
    _add_record(sub, "audit.json")

    sub = verb(
        "energy",
        analysis.energy,
        "Count the additions of a training checkpoint on its test split, and price them",
        "spikeformers energy runs/digits/best.safetensors digits --cost memory",
    )
    sub.add_argument("checkpoint", help="best.safetensors or last.safetensors of a run")
    sub.add_argument(
        "data",
        nargs="*",
        metavar="DATA",
        help="a folder of the checkpoint's own data set, or a recipe whose test split counts, with "
        "key=value (default: the checkpoint's recipe; data.root=FOLDER says where its data is now)",
    )
    sub.add_argument("--cost", default="paper", help="paper (the default), int8, lemaire or memory")
    sub.add_argument(
        "--first-layer",
        default="once",
        choices=["once", "per_step"],
        help="how often a still image is encoded (once)",
    )
    sub.add_argument(
        "--integers",
        default="additions",
        choices=["additions", "mac"],
        help="what an integer is that meets weights (as many additions as its value)",
    )
    _add_record(sub, "energy.json")
    _add_device(sub)

    sub = verb(
        "quantize",
        integers.quantize,
        "Write the integer network of a training checkpoint, and compare it on the test split",
        "spikeformers quantize runs/digits/best.safetensors -o digits_integer.safetensors",
    )
    sub.add_argument("checkpoint", help="best.safetensors or last.safetensors of a run")
    sub.add_argument(
        "overrides", nargs="*", metavar="data.root=FOLDER", help="where the data is now"
    )
    sub.add_argument("-o", "--out", dest="output", required=True, help="the .safetensors to write")
    sub.add_argument("--images", type=int, help="of the test split, its first (all)")
    fixes = sub.add_mutually_exclusive_group()
    fixes.add_argument(
        "--merge", action="store_true", help="make depthwise and pointwise convolutions one"
    )
    fixes.add_argument(
        "--neuron-between", action="store_true", help="put a neuron between them, untrained"
    )

    sub = verb(
        "chip",
        chip.chip,
        "Say what keeps a model off a chip, layer by layer (exit code 1: something does)",
        "spikeformers chip check stmixer_xs32 --chip event_driven, or: spikeformers chip list",
    )
    sub.add_argument("action", choices=["check", "list"], help="check a model, or list the chips")
    sub.add_argument("model", nargs="?", help="a model's name or a checkpoint")
    sub.add_argument("--chip", metavar="NAME", help="one that `chip list` names, or a TOML file")
    sub.add_argument(
        "--image-size", type=int, help="side in pixels (64, or the only one that the model takes)"
    )
    sub.add_argument(
        "--input",
        choices=list(verbs.INPUTS),
        default="analog",
        help="what the model is shown: images, events, or counts of events up to 255 (analog)",
    )
    _add_record(sub, "chip.json")

    sub = verb(
        "async",
        jitter.run_without_clock,
        "Run checkpoints spike by spike with random delays, and compare with the clocked run",
        "spikeformers async runs/stmixer/best.safetensors runs/spikformer/best.safetensors",
    )
    sub.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="training checkpoints")
    sub.add_argument(
        "--jitter",
        type=float,
        nargs="+",
        default=[0, 0.0625, 0.125, 0.25, 0.5, 1],
        help="longest delays of a spike on its way to a layer, in steps (0 to 1)",
    )
    sub.add_argument("--ticks", type=int, default=16, help="instants that a step has (16)")
    sub.add_argument("--images", type=int, default=100, help="of the test split, its first (100)")
    sub.add_argument("--seed", type=int, default=0, help="of the delays (0)")
    sub.add_argument(
        "-o", "--output", default="runs/async", metavar="FOLDER", help="for async.json, async.png"
    )
    sub.add_argument(
        "overrides", nargs="*", metavar="data.root=FOLDER", help="where the data is now"
    )
    _add_device(sub)

    sub = verb(
        "export",
        export.export,
        "Write a model for other programs, and check what was written",
        "spikeformers export runs/digits/best.safetensors --format onnx -o digits.onnx",
    )
    sub.add_argument("model", help="a model's name or a checkpoint")
    sub.add_argument("--format", required=True, help=" or ".join(sorted(export.FORMATS)))
    sub.add_argument("-o", "--output", required=True, help="what to write; it must be new")
    sub.add_argument("--image-size", type=int, help="side in pixels (as trained, else 224)")
    sub.add_argument("--timesteps", type=int, help="steps per call (as trained, else 4)")
    sub.add_argument(
        "--stream", action="store_true", default=None, help="onnx: the state goes in and comes out"
    )
    sub.add_argument(
        "--check",
        action=argparse.BooleanOptionalAction,
        help="onnx: keep the file only if onnxruntime computes the same to 1e-5 (the default)",
    )
    sub.add_argument(
        "--partial",
        action="store_true",
        default=None,
        help="nir: a folder of the pieces that NIR can express, and an index of what connects them",
    )
    sub.add_argument("--dt", type=float, help="nir: seconds per step (0.0001)")

    sub = verb(
        "convert",
        verbs.convert,
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

    sub = verb(
        "report",
        verbs.write_report,
        "Write report.html of a run, or compare.html of a comparison",
        "spikeformers report runs/digits",
    )
    sub.add_argument("run_folder", metavar="RUN", help="the folder that train or compare wrote")

    sub = verb(
        "share",
        verbs.share,
        "Turn a run into a folder for others, or a Hub repository: weights, config, model card",
        "spikeformers share runs/digits -o shared/digits --license apache-2.0",
    )
    sub.add_argument("run_folder", metavar="RUN", help="the folder that training wrote")
    sub.add_argument("-o", "--output", required=True, metavar="FOLDER", help="where to write it")
    sub.add_argument("--license", help="licence of the weights, for the card")
    sub.add_argument("--push", metavar="OWNER/NAME", help="upload it to this repository too")

    verb("doctor", verbs.doctor, "Say what works here, and why", "spikeformers doctor")
    return parser


def _add_record(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument(
        "--record",
        metavar="FILE",
        help=f"JSON file to keep the result in; RUN/{name} becomes part of the run's report",
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU if there is one")
