"""Write docs/results.md: every published accuracy, and what this library measured of it.

python docs/make_results.py            writes the page
python docs/make_results.py --check    exits with 1 if the page is not what it would write

It reads published.yaml, the recipes' `expected` sections and measured/*.json; nothing is computed
but means and comparisons.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from spikeformers.models import create_model
from spikeformers.train import list_recipes, load_recipe

DOCS = Path(__file__).parent
PAGE = DOCS / "results.md"

Facts = Mapping[str, Any]

TITLES = {
    "digits": "Digits (1,797 images of scikit-learn)",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "imagenet": "ImageNet-1K",
    "cifar10_dvs": "CIFAR10-DVS",
    "dvs128_gesture": "DVS128 Gesture",
    "har_dvs": "HAR-DVS",
    "kinetics400": "Kinetics-400 (videos)",
}
HEAD = """# Results

Top-1 accuracies in percent: what others published, what this library claims, what was measured with
it. Made by `python docs/make_results.py` from [published.yaml](published.yaml), the `expected`
sections of the [recipes](../src/spikeformers/recipes) and the records in `docs/measured`, which
`spikeformers verify RECIPE CHECKPOINT --record docs/measured/NAME.json` writes; do not edit it.

| mark | the claim was |
| --- | --- |
| own | measured with this library |
| S | seen in the source that is named: a paper, its authors' README or a later table |
| R | given by a third party |
| M | written down from memory, unverified, and so never a threshold |

| status | meaning |
| --- | --- |
| reproduced | our mean, on all test images, is at least the claim less its tolerance |
| below | it is less |
| not compared | measured on a part of the data only, or the claim's mark is M |
| untried | no verified checkpoint of it is recorded yet |

A dash is a number that nobody measured or that the source does not give. T is the number of time
steps, TxD with integer neurons of D levels.
"""
COLUMNS = ("system", "size", "M params", "T", "pixels", "claim", "mark", "measured here", "status")
COLUMNS += ("recipe", "source")
RECORD_COLUMNS = ("recipe", "model", "data", "images", "T", "epochs", "seed", "top-1", "minutes")
RECORD_COLUMNS += ("hardware", "command")


def status(claim: Facts, records: Sequence[Facts]) -> str:
    """Compare a claim with its measurements.

    Args:
        claim: `top1`, `tolerance` (`None` is 0) and `mark`.
        records: Measurements of it, as `spikeformers verify` writes them.
    """
    if not records:
        return "untried"
    if claim.get("mark") == "M" or any(record.get("subset") is not False for record in records):
        return "not compared"
    threshold = claim["top1"] - (claim.get("tolerance") or 0)
    return "reproduced" if mean(records) >= threshold else "below"


def mean(records: Sequence[Facts]) -> float:
    """Return the mean accuracy; rounded, so that binary fractions do not decide at a threshold."""
    return round(sum(record["top1"] for record in records) / len(records), 6)


def matching(claim: Facts, records: Sequence[Facts]) -> list[Facts]:
    """Return the measurements of a claim: of its recipe and, where they are given, T and epochs."""
    return [
        record
        for record in records
        if record["recipe"] == claim["recipe"]
        and steps(claim) in (record["timesteps"], None)
        and claim.get("epochs") in (record["epochs"], None)
    ]


def steps(claim: Facts) -> int | None:
    """Return the time steps T of a claim: of "1x4" the first number."""
    given = claim["timesteps"]
    return None if given is None else int(str(given).partition("x")[0])


def published() -> list[dict[str, Any]]:
    """Return what others published; a row with a recipe takes over that recipe's tolerance."""
    rows: list[dict[str, Any]] = yaml.safe_load((DOCS / "published.yaml").read_text())
    expected = {name: load_recipe(name).as_dict()["expected"] for name in list_recipes()}
    tolerances = {name: claim.get("tolerance") for name, claim in expected.items()}
    return [{**row, "tolerance": tolerances.get(row["recipe"])} for row in rows]


def own_claims() -> list[dict[str, Any]]:
    """Return what the recipes claim of this library; other claims stand in published.yaml."""
    claims = []
    for name in list_recipes():
        recipe = load_recipe(name).as_dict()
        model, expected = recipe["model"], recipe["expected"]
        if expected["mark"] != "own":
            continue
        claims.append(
            {
                "system": "this library",
                "size": model["name"],
                "parameters": _millions(model),
                "timesteps": recipe["train"]["timesteps"],
                "resolution": recipe["data"]["image_size"],
                "data": recipe["data"]["name"],
                "recipe": name,
                **{key: expected.get(key) for key in ("top1", "tolerance", "mark", "source")},
            }
        )
    return claims


def _millions(model: Facts) -> float:
    shape = {key: model[key] for key in ("in_channels", "num_classes")}
    with torch.device("meta"):
        built = create_model(model["name"], **shape, **model["overrides"])
    return round(sum(parameter.numel() for parameter in built.parameters()) / 1e6, 2)


def measured() -> list[dict[str, Any]]:
    """Return the records of verified checkpoints, sorted by recipe and seed."""
    records = [json.loads(path.read_text()) for path in sorted(DOCS.glob("measured/*.json"))]
    return sorted(records, key=lambda record: (record["recipe"], record["seed"]))


def page(claims: Sequence[Facts], records: Sequence[Facts]) -> str:
    """Return the page: one table per data set, ours first, then every measurement."""
    names = [*TITLES, *sorted({claim["data"] for claim in claims} - set(TITLES))]
    parts = [HEAD]
    for name in names:
        rows = [_row(claim, records) for claim in claims if claim["data"] == name]
        if rows:
            parts.append(f"## {TITLES.get(name, name)}\n\n{_table(COLUMNS, rows)}")
    rows = [_record(record) for record in records]
    every = _table(RECORD_COLUMNS, rows) if rows else "No checkpoint has been verified yet.\n"
    return "\n".join([*parts, f"## Every measurement\n\n{every}"])


def _row(claim: Facts, records: Sequence[Facts]) -> list[Any]:
    found = matching(claim, records)
    each = ", ".join(f"{record['top1']:.2f}" for record in found)
    shown = f"{mean(found):.2f} ({each})" if len(found) > 1 else each or None
    size = f"{claim['size']}, {claim['epochs']} epochs" if "epochs" in claim else claim["size"]
    sizes = [claim[key] for key in ("parameters", "timesteps", "resolution")]
    recipe = claim["recipe"] and f"`{claim['recipe']}`"
    mine = [shown, status(claim, found), recipe]
    return [claim["system"], size, *sizes, claim["top1"], claim["mark"], *mine, claim["source"]]


def _record(record: Facts) -> list[Any]:
    images = f"{record['images']:,}{'' if record.get('subset') is False else ' (a part)'}"
    return [
        f"`{record['recipe']}`",
        record["model"],
        record["data"],
        images,
        *(record[key] for key in ("timesteps", "epochs", "seed")),
        f"{record['top1']:.2f}",
        f"{record['minutes']:.1f}",
        record["environment"].get("device_name"),
        f"`{record['command']}`",
    ]


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(value: Any) -> str:
    return "-" if value is None else str(value).replace("|", "\\|")


def main(arguments: Sequence[str]) -> int:
    """Write or check the page; return the exit code."""
    text = page([*own_claims(), *published()], measured())
    if "--check" not in arguments:
        PAGE.write_text(text)
    elif not PAGE.is_file() or PAGE.read_text() != text:
        print(f"{PAGE} is stale: run python {Path(__file__).name}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
