"""The page of results follows from its data, and nothing that nobody measured is on it."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml

from spikeformers.train import list_recipes, load_recipe

DOCS = Path(__file__).parents[2] / "docs"
SPEC = importlib.util.spec_from_file_location("make_results", DOCS / "make_results.py")
results = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(results)

CLAIM = {
    "system": "Someone's",
    "size": "8-512",
    "parameters": None,
    "timesteps": 4,
    "resolution": 32,
    "data": "cifar10",
    "top1": 95.0,
    "tolerance": 0.5,
    "mark": "S",
    "source": "paper | appendix",
    "recipe": "cifar10",
}
RECORD = {
    "recipe": "cifar10",
    "top1": 94.8,
    "expected": None,
    "tolerance": None,
    "data": "cifar10",
    "subset": False,
    "images": 10000,
    "timesteps": 4,
    "seed": 0,
    "epochs": 100,
    "model": "meta_spikeformer_s32",
    "command": "spikeformers verify cifar10 best.safetensors",
    "environment": {"device_name": "Some GPU"},
    "minutes": 12.0,
}


def records(*top1: float, **changes: Any) -> list[dict[str, Any]]:
    return [{**RECORD, "top1": value, "seed": i} | changes for i, value in enumerate(top1)]


def test_the_page_is_up_to_date() -> None:
    assert results.main(["--check"]) == 0, "run python docs/make_results.py"


def test_a_stale_page_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results, "PAGE", tmp_path / "results.md")
    assert results.main(["--check"]) == 1
    assert results.main([]) == 0
    assert results.main(["--check"]) == 0
    (tmp_path / "results.md").write_text("99.9 %")
    assert results.main(["--check"]) == 1
    assert "results.md is stale: run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("found", "changes", "expected"),
    [
        ([], {}, "untried"),
        ([], {"mark": "M"}, "untried"),
        (records(94.5), {}, "reproduced"),
        (records(94.49), {}, "below"),
        (records(94.0, 95.0), {}, "reproduced"),
        (records(94.0, 94.9), {}, "below"),
        (records(94.9), {"tolerance": None}, "below"),
        (records(95.1, 94.9), {"tolerance": None}, "reproduced"),
        (records(95.2), {"top1": 95.3, "tolerance": 0.1}, "reproduced"),
        (records(99.0), {"mark": "M"}, "not compared"),
        (records(10.0), {"mark": "M"}, "not compared"),
        (records(99.0, subset=True), {}, "not compared"),
        ([*records(99.0), *records(99.0, subset=True)], {}, "not compared"),
        (records(94.5), {"mark": "own"}, "reproduced"),
        (records(94.5), {"mark": None}, "reproduced"),
    ],
)
def test_the_status_follows_from_the_data(
    found: list[dict[str, Any]], changes: dict[str, Any], expected: str
) -> None:
    assert results.status(CLAIM | changes, found) == expected


def test_a_measurement_belongs_to_claims_of_its_recipe_and_time_steps() -> None:
    one, two = records(94.0, timesteps=4), records(93.0, timesteps=2)
    assert results.matching(CLAIM, [*one, *two]) == one
    assert results.matching(CLAIM | {"timesteps": None}, [*one, *two]) == [*one, *two]
    for other in ("cifar100", None):
        assert results.matching(CLAIM | {"recipe": other}, one) == []


def test_a_measurement_belongs_to_claims_of_its_epochs_where_they_are_said() -> None:
    found = records(94.0, epochs=100)
    assert results.matching(CLAIM | {"epochs": 100}, found) == found
    assert results.matching(CLAIM | {"epochs": 400}, found) == []
    assert "| 8-512, 400 epochs |" in results.page([CLAIM | {"epochs": 400}], [])


def test_integer_neurons_are_measured_at_their_first_number_of_steps() -> None:
    found = records(94.0, timesteps=1)
    assert results.matching(CLAIM | {"timesteps": "1x4"}, found) == found
    assert results.matching(CLAIM | {"timesteps": "4x1"}, found) == []


def test_the_page_shows_the_mean_each_seed_and_where_it_was_measured() -> None:
    page = results.page([CLAIM], records(94.0, 95.0))
    row = "| Someone's | 8-512 | - | 4 | 32 | 95.0 | S | 94.50 (94.00, 95.00) | reproduced |"
    assert f"{row} `cifar10` | paper \\| appendix |" in page
    for fact in ("| 10,000 | 4 | 100 | 1 | 95.00 | 12.0 | Some GPU | `spikeformers verify",):
        assert fact in page
    assert "(a part)" in results.page([CLAIM], records(94.0, subset=True))
    assert "No checkpoint has been verified" in results.page([CLAIM], [])
    assert "## new_set" in results.page([CLAIM | {"data": "new_set"}], [])


PUBLISHED = yaml.safe_load((DOCS / "published.yaml").read_text())


def test_published_rows_are_complete_and_name_real_recipes() -> None:
    keys = {"system", "size", "parameters", "timesteps", "resolution", "data", "top1", "mark"}
    for row in PUBLISHED:
        assert row.keys() - {"epochs"} == keys | {"source", "recipe"}, row
        assert 0 < row["top1"] < 100 and row["mark"] in ("S", "R", "M"), row
        assert row["source"] and row["data"] in results.TITLES, row
        assert row["recipe"] is None or row["recipe"] in list_recipes(), row
    shown = [tuple(v for k, v in row.items() if k not in ("top1", "source")) for row in PUBLISHED]
    assert len(set(shown)) == len(shown)


def test_recipes_expect_what_was_published() -> None:
    claimed = set()
    for row in PUBLISHED:
        if row["recipe"] is None:
            continue
        recipe = load_recipe(row["recipe"])
        settings, size = recipe.train, recipe.data.image_size
        assert row["resolution"] in (size, None), row
        run = results.steps(row), row.get("epochs", settings.epochs)
        if run == (settings.timesteps, settings.epochs) and "others' runs" not in row["system"]:
            assert (row["top1"], row["mark"]) == (recipe.expected.top1, recipe.expected.mark), row
            claimed.add(row["recipe"])
    for name in list_recipes():
        expected = load_recipe(name).expected
        assert expected.mark in ("own", None) or name in claimed, name
        assert (expected.top1 is None) == (expected.mark is None) == (expected.source is None), name


def test_no_claim_from_memory_is_a_threshold() -> None:
    claims, found = [*results.own_claims(), *results.published()], results.measured()
    for claim in claims:
        said = results.status(claim, results.matching(claim, found))
        assert claim["mark"] != "M" or said in ("untried", "not compared"), claim


def test_own_claims_are_those_of_the_recipes() -> None:
    claims = {claim["recipe"]: claim for claim in results.own_claims()}
    assert claims.keys() <= set(list_recipes())
    digits = claims["digits"]
    assert digits["data"] == "digits" and digits["parameters"] == 0.26
    assert digits["system"] == "this library" and digits["source"]


def test_records_are_complete() -> None:
    for record in results.measured():
        assert record.keys() >= RECORD.keys(), record
        assert record["recipe"] in list_recipes(), record
