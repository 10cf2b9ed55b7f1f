"""Documents stay true: links lead somewhere, the README's example runs, verbs are documented."""

import re
from pathlib import Path

import pytest

from spikeformers.train import list_recipes

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    missing = [x for x in links if "://" not in x and not (page.parent / x).exists()]
    assert missing == []


@pytest.mark.compile
def test_the_readme_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (snippet,) = re.findall(r"## Twelve lines\n\n```python\n(.*?)```", README, re.DOTALL)
    exec(snippet, {})
    assert capsys.readouterr().out.splitlines() == ["True", "not spike-driven"]


def test_the_readme_names_every_small_recipe_and_every_folder_of_recipes() -> None:
    names = {f"{folder}/" if file else folder for folder, _, file in RECIPES}
    assert sorted(name for name in names if f"`{name}`" not in README) == []


README = (ROOT / "README.md").read_text()
RECIPES = [name.partition("/") for name in list_recipes()]
