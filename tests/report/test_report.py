"""The page of a run: complete, self-contained, escaped, reproducible."""

import base64
import io
import json
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from spikeformers.errors import DataError, MissingExtraError
from spikeformers.report import write_report
from spikeformers.report.markup import Markup, tag
from spikeformers.report.pictures import heat_uri
from spikeformers.report.tables import confusion, count, duration, events, facts, percent

EVIL = "<script>alert('x')</script>"
CLASSES = ["cat", EVIL, "https://example.org/x.png"]
SECTIONS = (
    "training",
    "anytime-accuracy",
    "firing-rates",
    "spikes",
    "attention",
    "predictions",
    "confusion",
    "operations",
    "energy",
    "chips",
    "configuration",
    "environment",
)
VOID = {"br", "img", "link", "meta"}


class Page(HTMLParser):
    """Collects the elements and refuses what is not well nested."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text, self.open = [], "", []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def values(self, name):
        return [attrs[name] for _, attrs in self.elements if name in attrs]


def epoch(number, **changes):
    fact = {"event": "epoch", "epoch": number, "step": 44 * number, "loss": 2.0 / number}
    return fact | {"learning_rate": 1e-3, "train_top1": 50.0, "top1": None} | changes


@pytest.fixture
def folder(tmp_path):
    start = {"event": "start", "model": "spikformer_tiny", "parameters": 1234}
    start["recipe"] = {"seed": 0, "model": {"name": EVIL, "neuron": {"tau": 2.0}}, "notes": None}
    start["recipe"]["data"] = {"mean": [0.5, 0.4], "mix": [{"alpha": 0.2}, None], "none": {}}
    start["environment"] = {"torch": "2.13.0", "device": "cpu"}
    events = [start, epoch(1), epoch(2), epoch(2, loss=0.5, top1=60.0), epoch(3, loss=float("nan"))]
    events += [{"event": "skipped", "epoch": 1, "message": f"{EVIL}.png is no picture"}]
    events += [{"event": "stopped", "epoch": 2, "signal": 15}]
    events += [{"event": "resume", "epoch": 2, "step": 88}, {"event": "unheard-of"}]
    events[3]["top1_per_step"] = [30.0, 60.0]
    lines = [json.dumps(event) for event in events]
    (tmp_path / "log.jsonl").write_text("\n".join([*lines, '{"event":"epoch","epo']))
    metrics = {"top1": 66.7, "top1_per_step": [33.3, 66.7], "seconds": 83.4, "epochs": 3}
    metrics["confusion"] = [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))

    write_inspection(tmp_path)
    return tmp_path


def write_inspection(folder, channels=3, size=8, most=3):
    step = {"classes": [0, 1, 2], "probabilities": [0.5, 0.3, None]}
    layer = {"rate_per_step": [0.1, 0.3], "never_fired": 0.25, "always_fired": 0.0}
    known = {"spikes": "on", "after": "after", "before": "before", "threshold": "threshold"}
    inspection = {
        "timesteps": 2,
        "classes": CLASSES,
        "looked_at": {"images": 400, "right": 390},
        "layers": [
            layer | {"name": "stem.neuron", "neurons": 300, "rate": 0.2},
            layer | {"name": "head.neuron", "neurons": 100, "rate": 0.0},
        ],
        "rasters": [{"layer": "stem.neuron", "neurons": [0, 1, 2], "array": "raster_0"}],
        "traces": [
            {"layer": "stem.neuron", "neurons": [7, 8]} | known,
            {"layer": "head.neuron", "neurons": [7, 8]}
            | known
            | {"before": None, "threshold": None},
        ],
        "attention": [{"layer": f"blocks.{i}", "array": f"attention_{i}"} for i in range(3)],
        "samples": [{"index": k, "label": k % 3, "steps": [step, step]} for k in range(most)],
    }
    (folder / "inspect.json").write_text(json.dumps(inspection))
    random = np.random.default_rng(0)
    np.savez(
        folder / "inspect.npz",
        images=random.integers(0, 256, (most, channels, size, size), dtype=np.uint8),
        raster_0=np.eye(3, 2, dtype=bool),
        on=np.eye(2, dtype=bool),
        after=np.zeros((2, 2)),
        before=np.array([[1.5, 0.5], [np.nan, 1.2]]),
        threshold=np.ones(2),
        attention_0=np.zeros((most, 2, 3)),
        attention_1=random.random((most, 2, 3)),
        attention_2=random.random((most, 1, 1)),
    )


def read(folder):
    return write_report(folder).read_text(encoding="utf-8")


def test_says_what_the_files_say(folder):
    page = Page(read(folder))
    assert [attrs["id"] for name, attrs in page.elements if name == "section"] == list(SECTIONS)
    for text in ("spikformer_tiny", "66.7 %", "1 min 23 s", "15.0 %", "silent", "model.neuron"):
        assert text in page.text
    assert "Selected: 1 right and 2 wrong of 400 looked at, of which 390 are right" in page.text
    assert f"skipped: {EVIL}.png is no picture" in page.text
    assert "stopped: signal 15" in page.text and "epoch 2, step 88" in page.text
    assert "unheard-of" not in page.text and "alpha 0.2, –" in page.text  # noqa: RUF001
    assert sum(name == "svg" for name, _ in page.elements) == 8
    pictures = [attrs for name, attrs in page.elements if name == "img"]
    # In the header a picture and a map of two samples, then with two maps, then alone.
    assert len(pictures) == 2 * 3 + 3 * 5 + 3 and all(attrs["alt"] for attrs in pictures)
    verdicts = [attrs["class"] for name, attrs in page.elements if name == "article"]
    assert verdicts == ["right", "wrong"] + 2 * ["wrong", "wrong", "right"]
    assert page.text.count("silent") == 2 + 3


def test_says_what_older_files_say(folder):
    path = folder / "inspect.json"
    inspection = json.loads(path.read_text())
    for key in ("looked_at", "traces", "attention"):
        del inspection[key]
    path.write_text(json.dumps(inspection))
    log = folder / "log.jsonl"
    log.write_text("\n".join(line for line in log.read_text().splitlines() if "epoch" not in line))
    page = Page(read(folder))
    assert "1 right and 2 wrong samples" in page.text and "No attention maps" in page.text
    assert "Membrane potentials" not in page.text and "Events" not in page.text


def test_counts_what_a_long_list_leaves_out():
    listed = events([{"event": "skipped", "epoch": 1, "message": "a"}] * 23)
    assert listed.count("<li") == 21 and "and 3 more" in listed


def test_many_photographs_stay_below_two_megabytes(folder):
    write_inspection(folder, size=224, most=24)
    page = read(folder)
    assert "data:image/jpeg" in page and len(page) < 2e6


def test_a_map_is_smooth_and_spans_the_colours():
    from PIL import Image

    uri = heat_uri(np.array([[0.0, 0.0], [0.0, 0.4]]))
    heat = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGBA")
    colours = [heat.getpixel((i, i)) for i in range(0, 64, 8)] + [heat.getpixel((63, 63))]
    brightness = [sum(colour[:3]) for colour in colours]
    assert brightness == sorted(brightness) and brightness[0] < 10 and brightness[-1] > 600
    assert colours[0][3] < colours[-1][3]


def test_asks_nobody_for_anything(folder):
    html = read(folder)
    page = Page(html)
    assert "script" not in {name for name, _ in page.elements}
    addresses = [*page.values("href"), *page.values("src"), *page.values("xlink:href")]
    assert addresses and all(address.startswith(("#", "data:")) for address in addresses)
    anchors = [address[1:] for address in addresses if address.startswith("#")]
    assert set(anchors) <= set(page.values("id"))
    assert all(css.startswith("#") for css in re.findall(r"url\(([^)]*)\)", html))
    assert "@import" not in html
    # The only address on the page is the class that was named like one.
    assert set(re.findall(r"https?://[^\s<\"]*", html)) == {CLASSES[2]}


def test_escapes_what_it_did_not_write(folder):
    html = read(folder)
    assert EVIL not in html and "<script" not in html
    assert EVIL in Page(html).text


def test_same_run_same_bytes(folder):
    before = {path.name for path in folder.iterdir()}
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    assert {path.name for path in folder.iterdir()} == before | {"report.html"}


def test_leaves_matplotlib_as_it_was(folder):
    import matplotlib

    with matplotlib.rc_context({"font.size": 31}):
        large = read(folder)
        assert matplotlib.rcParams["font.size"] == 31
    assert large == read(folder)


def test_names_the_broken_off_line(folder):
    assert "cut off and left out: 1." in read(folder)
    log = folder / "log.jsonl"
    log.write_text("\n".join(log.read_text().splitlines()[:-1]))
    assert "cut off and left out" not in read(folder)


def test_without_inspection(folder):
    (folder / "inspect.npz").unlink()
    html = read(folder)
    assert html.count("`spikeformers report RUN` writes them") == 4
    assert "<article" not in html and Page(html)


def test_unknown_numbers_are_dashes(folder):
    (folder / "log.jsonl").write_text("")
    (folder / "metrics.json").write_text('{"top1": null}')
    (folder / "inspect.json").unlink()
    page = Page(read(folder))
    assert page.text.count("–") == 4  # noqa: RUF001
    assert "unnamed model" in page.text and "no finished epoch" in page.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.jsonl", None, "has no log.jsonl"),
        ("metrics.json", None, "has no metrics.json"),
        ("metrics.json", "{", "is not JSON"),
        ("metrics.json", "[]", "expected an object"),
        ("inspect.npz", "torn", "is damaged"),
    ],
)
def test_damage_is_one_sentence(folder, name, content, message):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(DataError, match=message):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match="no run folder"):
        write_report(tmp_path / "nowhere")


def test_without_matplotlib(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"spikeformers\[train\]"):
        write_report(folder)


def test_many_classes_become_an_image():
    assert confusion(np.eye(30).tolist(), [str(k) for k in range(30)]).count("<img") == 1
    assert confusion(np.eye(3).tolist(), list("abc")).count("<tr") == 4


def test_formats():
    assert [percent(97.84), percent(None), percent(float("nan"))] == ["97.8 %", "–", "not finite"]  # noqa: RUF001
    assert count(195402) == "195\u202f402"
    assert [duration(s) for s in (8.44, 59.99, 125, 7500)] == [
        "8.4 s",
        "60.0 s",
        "2 min 05 s",
        "2 h 05 min",
    ]
    table = facts({"a": True, "b": {"c": [1, "x"], "d": {}}, "e": None})
    assert re.findall(r"<td>(.*?)</td>", table) == ["yes", "–", "1, x", "–"]  # noqa: RUF001


def test_text_is_escaped_unless_it_is_markup():
    assert tag("a", "<", Markup("<b>"), title='"') == '<a title="&quot;">&lt;<b></a>'
    assert tag("img", alt=None) == "<img>"
