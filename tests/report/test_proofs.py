"""Audit, energy and chips on the page of a run, and the picture of jitter."""

import json

import numpy as np
import pytest
from PIL import Image

from spikeformers.errors import DataError
from spikeformers.report import draw_jitter, write_report

EVIL = "<b>layer</b>"

AUDIT = {
    "verdict": "not spike-driven",
    "rows": [
        {"path": EVIL, "op": "conv2d", "operands": ["image", "weights"], "verdict": "encode"}
        | {"reason": "affine in the image"},
        {"path": "head", "op": "linear", "operands": ["analog", "weights"], "verdict": "MAC"}
        | {"reason": "no neuron stands in front"},
    ],
    "unknown": ["aten::sin"],
    "notes": ["the factor 0.25 merges"],
}


def row(path: str, unit: str, per_step: list[float], mJ: float = 0.0) -> dict:
    return {"path": path, "op": "x", "verdict": "AC", "unit": unit, "count": sum(per_step)} | {
        "per_step": per_step,
        "mJ": mJ,
    }


ENERGY = {
    "samples": 7,
    "cost": "paper",
    "rows": [
        row("a", "AC", [3e9, 1e9], 3.6),
        row("a.neuron", "update", [100, 100]),
        row("a.neuron", "spike", [50, 10]),
        row("b", "AC", [0.0, 2e9], 1.8),
        row("b", "MAC", [1e9, 0.0], 4.6),
    ],
    "prices": {"paper": {"AC": 0.9, "MAC": 4.6}, "memory": {"AC": 10.0, "spike": 1e9}},
    "mJ": {"paper": 10.0, "memory": 60.06},
    "steps": [7.3, 2.7],
    "unpriced": {"update": 200},
}
CHIP = {
    "verdict": "does not fit",
    "chip": {"name": "speck", "title": "Speck & Co", "limits": {}},
    "operations": [
        {"path": "a", "op": "conv2d", "operator": "synapse", "operands": ["{0,1}", "weights"]}
        | {"fan_in": 9, "connections": 81000, "weights": 90, "accumulator_bits": None, "neurons": 0}
    ],
    "violations": [
        {"path": "a", "op": "conv2d", "limit": "bias", "found": True, "allowed": "only False"}
        | {"change": "train without"},
        {"path": "", "op": "", "limit": "cores", "found": 10, "allowed": "at most 9"}
        | {"change": "use fewer layers"},
        *(
            {"path": path, "op": "max_pool2d", "limit": "operator", "found": "maximum"}
            | {"allowed": "only synapse", "change": "stride"}
            for path in "pq"
        ),
    ],
    "unchecked": ["reset"],
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "log.jsonl").write_text(json.dumps({"event": "start", "model": "m"}))
    (tmp_path / "metrics.json").write_text("{}")
    return tmp_path


def page_with(folder, **files: dict) -> str:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return write_report(folder).read_text()


def cells_of(page: str, section: str, first: str) -> list[str]:
    """Return the cells of the row of a section that begins with a text."""
    part = page.split(f'id="{section}"')[1].split("</section>")[0]
    line = part.split(f'<th scope="row">{first}</th>')[1].split("</tr>")[0]
    return [cell.split("<")[0] for cell in line.split("<td>")[1:]]


def test_without_files_the_page_says_how_to_get_them(folder) -> None:
    page = page_with(folder)
    for command in ("audit RUN", "energy RUN", "chip check RUN"):
        assert f"spikeformers {command}/best.safetensors" in page


def test_the_audit_is_a_table(folder) -> None:
    page = page_with(folder, audit=AUDIT)
    assert "The folded network is not spike-driven." in page
    assert cells_of(page, "operations", "head")[1:3] == ["analog x weights", "MAC"]
    assert EVIL not in page and "&lt;b&gt;layer" in page
    assert "Unknown operator: aten::sin." in page and "the factor 0.25 merges." in page


def test_energy_stands_by_layer_by_cost_model_and_by_step(folder) -> None:
    page = page_with(folder, energy=ENERGY)
    assert cells_of(page, "energy", "memory") == ["60.06 mJ"]
    # Of b: 2e9 additions and 1e9 MACs; the other model prices additions only.
    assert cells_of(page, "energy", "b")[:2] == ["6.4", "20"]
    # A neuron's spikes cost something under the other model alone.
    assert cells_of(page, "energy", "a.neuron") == ["0", "60", "0"]
    assert cells_of(page, "energy", "1") == ["50.0 %", "3\u202f000\u202f000\u202f000", "7.3"]
    assert cells_of(page, "energy", "2")[0] == "10.0 %"
    assert "paper leaves out: update" in page


def test_every_chip_has_its_part(folder) -> None:
    page = page_with(folder, chip=CHIP, chip_other={**CHIP, "violations": [], "verdict": "fits"})
    assert page.count("Speck &amp; Co") == 2
    assert cells_of(page, "chips", "cores 10") == ["at most 9", "use fewer layers", "(model)"]
    assert cells_of(page, "chips", "maximum") == ["no such operator", "stride", "p, q"]
    assert "The folded network fits." in page and "no public source tells: reset" in page
    assert "81\u202f000" in page


@pytest.mark.parametrize("name", ["audit", "energy", "chip_speck"])
def test_a_file_of_something_else_is_refused(folder, name) -> None:
    with pytest.raises(DataError, match=rf"{name}.json has no "):
        page_with(folder, **{name: {"something": "else"}})
    (folder / f"{name}.json").write_text("{")
    with pytest.raises(DataError, match=rf"{name}.json is not JSON"):
        write_report(folder)


def study(model: str) -> dict:
    rows = [
        {"neurons": neurons, "jitter": jitter, "agreement": 1 - jitter, "shared_spikes": 0.5}
        for neurons in ("fire at once", "wait")
        for jitter in (0.0, 0.5, 1.0)
    ]
    return {"model": model, "rows": rows}


def test_jitter_is_drawn_from_the_file_alone(tmp_path) -> None:
    (tmp_path / "async.json").write_text(json.dumps({"models": [study("a"), study("b")]}))
    path = draw_jitter(tmp_path)
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["async.json", "async.png"]
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert picture.shape[0] > 300 and picture.std() > 5
    again = path.read_bytes()
    assert draw_jitter(tmp_path).read_bytes() == again


@pytest.mark.parametrize("content", ["{}", '{"models": []}', "["])
def test_a_picture_needs_its_file(tmp_path, content) -> None:
    with pytest.raises(DataError, match=r"there is no .*async\.json"):
        draw_jitter(tmp_path)
    (tmp_path / "async.json").write_text(content)
    with pytest.raises(DataError, match=r"async\.json"):
        draw_jitter(tmp_path)
    assert not (tmp_path / "async.png").exists()
