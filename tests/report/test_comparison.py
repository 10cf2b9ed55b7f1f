"""The page of a comparison: it says what the file says, marks the best and asks nobody."""

import json
import re

import pytest

from spikeformers.errors import DataError
from spikeformers.report import comparison_table, write_comparison
from tests.report.test_report import EVIL, Page

UNMEASURED = {
    "top1": None,
    "firing_rate": None,
    "images_per_second": None,
    "memory_mib": None,
    "train_images_per_second": None,
    "train_memory_mib": None,
}


def row(model, **figures):
    facts = {"model": model, "parameters": 250_000, "timesteps": 4, "epochs": 3, "minutes": 9.5}
    return facts | UNMEASURED | {"error": None} | figures


@pytest.fixture
def folder(tmp_path):
    facts = {
        "command": f"spikeformers compare small {EVIL}",
        "recipe": {
            "data": {"name": "digits"},
            "augment": {},
            "train": {"seed": 0},
            "distill": None,
        },
        "budget": {"minutes": 10.0, "epochs": None},
        "data": {"name": "digits", "training_images": 80, "held_out_images": 20, "classes": 10},
        "environment": {"torch": "2.13.0", "device_name": "Some CPU"},
        "rows": [
            row("small", top1=90.0, firing_rate=0.2, images_per_second=900.0, memory_mib=300.0),
            row("large", top1=95.5, firing_rate=0.1, images_per_second=9.0, parameters=31_000_000),
            row(EVIL, error=f"{EVIL} did not fit into memory"),
        ],
    }
    (tmp_path / "compare.json").write_text(json.dumps(facts))
    return tmp_path


def test_says_what_the_file_says_and_marks_the_best(folder):
    html = write_comparison(folder).read_text(encoding="utf-8")
    page = Page(html)
    for text in ("3 models on digits", "10 minutes of training each", "80 training", "Some CPU"):
        assert text in page.text
    assert f"{EVIL} did not fit into memory" in page.text and EVIL not in html
    best = re.findall(r'<td class="best">(.*?)</td>', html)
    assert best == ["250\u202f000", "900", "95.50", "10.00"]
    # Nobody measured what training takes.
    assert sum(name == "svg" for name, _ in page.elements) == 4
    tiles = re.findall(r"<dd>(.*?)</dd>", html)
    assert tiles == ["95.50 %", "10.00 %", "900/s", "250\u202f000"]


def test_asks_nobody_for_anything(folder):
    html = write_comparison(folder).read_text(encoding="utf-8")
    page = Page(html)
    assert "script" not in {name for name, _ in page.elements}
    addresses = [*page.values("href"), *page.values("src")]
    assert addresses and all(address.startswith(("#", "data:")) for address in addresses)
    assert "@import" not in html and re.findall(r"https?://", html) == []


def test_same_file_same_bytes(folder):
    first = write_comparison(folder).read_bytes()
    assert write_comparison(folder).read_bytes() == first
    assert {path.name for path in folder.iterdir()} == {"compare.json", "compare.html"}


def test_a_table_of_texts(folder):
    table = comparison_table(json.loads((folder / "compare.json").read_text()))
    assert len({len(line) for line in table}) == 1
    assert table[1][:6] == ["1", "small", "250\u202f000", "4", "90.00", "20.00"]
    assert table[3][4] == "–"  # noqa: RUF001


def test_nothing_measured_is_no_plot(folder):
    path = folder / "compare.json"
    facts = json.loads(path.read_text())
    facts["rows"] = [row("small")]
    path.write_text(json.dumps(facts))
    page = Page(write_comparison(folder).read_text(encoding="utf-8"))
    assert "No model has been measured yet" in page.text


@pytest.mark.parametrize(
    ("content", "message"), [(None, "let 'spikeformers compare' write it"), ("{}", "has no rows")]
)
def test_damage_is_one_sentence(folder, content, message):
    (folder / "compare.json").unlink()
    if content is not None:
        (folder / "compare.json").write_text(content)
    with pytest.raises(DataError, match=message):
        write_comparison(folder)
