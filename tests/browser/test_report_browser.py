"""A report as a browser shows it: drawn, without a request, and no wider than a phone."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from spikeformers import create_model
from spikeformers.data import direct
from spikeformers.inspect import gather
from spikeformers.report import write_report
from tests.helpers import enliven

pytestmark = pytest.mark.browser

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
PHONE = 390
QUIET = [
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--hide-scrollbars",
    "--no-first-run",
    # Nobody answers: whatever the page fetched would be missing, and the log would name it.
    "--host-resolver-rules=MAP * ~NOTFOUND",
]

# Measured from outside, since the report itself runs no script.
RULER = """<!doctype html>
<iframe src="{page}" width="{width}" height="800" style="border: 0"></iframe>
<script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument;
  document.title = `${{page.documentElement.scrollWidth}} of ${{page.documentElement.clientWidth}}`;
}};
</script>"""


@pytest.fixture(scope="module", autouse=True)
def browser():
    if not CHROMIUM:
        pytest.fail("no browser found: install chromium, for example `apt install chromium`")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of a small untrained model on clouds: everything is drawn, nothing is learned."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model = enliven(create_model("meta_spikeformer_xs32", num_classes=4)).float()
    clouds = F.interpolate(torch.rand(40, 3, 5, 5), 48, mode="bicubic").clamp(0, 1)
    images = (255 * clouds).to(torch.uint8)
    gather(
        model,
        images,
        torch.arange(40) % 4,
        ["cat", "dog", "a class with a rather long name", "bird"],
        folder,
        encode=lambda pixels: direct(pixels / 127.5 - 1, timesteps=3),
    )
    lines = [{"event": "start", "model": "meta_spikeformer_xs32", "recipe": {"a": [1, None]}}]
    lines += [{"event": "skipped", "epoch": 1, "message": f"{'x' * 90}.png is no picture"}]
    for epoch in range(1, 9):
        top1 = [25 + 3 * epoch, 30 + 4 * epoch, 30 + 5 * epoch]
        facts = {"loss": 2 / epoch, "learning_rate": 1e-3, "train_top1": top1[-1] + 2}
        lines += [
            {"event": "epoch", "epoch": epoch, "top1": top1[-1], "top1_per_step": top1} | facts
        ]
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    metrics = {"top1": 70.0, "top1_per_step": [49.0, 62.0, 70.0], "seconds": 83.4, "epochs": 8}
    metrics["confusion"] = [[10 * (i == j) + (i + j) % 3 for j in range(4)] for i in range(4)]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return write_report(folder)


def chromium(*options: str, profile: Path) -> str:
    # Chromium refuses its sandbox to root, and only to root.
    as_root = ["--no-sandbox"] if os.getuid() == 0 else []
    return subprocess.run(
        [CHROMIUM, "--headless", *as_root, *QUIET, f"--user-data-dir={profile}", *options],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout


def requests_of(log: Path) -> set[str]:
    """What a page asked the network for; what Chromium asks on its own account has no origin."""
    facts = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    return {
        fact["url"]
        for fact in facts
        if fact.get("url", "").startswith(("http", "ws"))
        and fact.get("initiator", "not an origin") != "not an origin"
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(1200, 5600), (PHONE, 9000)])
def test_is_drawn_without_a_request(page, tmp_path, width, height, scheme):
    picture, log = page.with_name(f"{width}-{scheme}.png"), tmp_path / "network.json"
    chromium(
        f"--window-size={width},{height}",
        f"--blink-settings=preferredColorScheme={int(scheme == 'light')}",
        f"--log-net-log={log}",
        f"--screenshot={picture}",
        page.as_uri(),
        profile=tmp_path,
    )
    print(f"\n{picture}")
    assert requests_of(log) == set()
    image = Image.open(picture).convert("RGB")
    colours = image.getcolors(width * height)
    assert image.size == (width, height) and len(colours) > 1000
    # Paper is the most frequent colour.
    assert (sum(max(colours)[1]) > 600) is (scheme == "light")
    # Something is drawn in every part of the page but the last, which may lie behind its end.
    for top in range(0, height * 3 // 4, height // 12):
        part = image.crop((0, top, width, top + height // 12))
        assert len(part.getcolors(width * height)) > 50, top


def test_a_request_would_be_noticed(tmp_path):
    url, log = "http://example.invalid/picture.png", tmp_path / "network.json"
    page = tmp_path / "page.html"
    page.write_text(f'<!doctype html><img src="{url}">')
    chromium(f"--log-net-log={log}", "--dump-dom", page.as_uri(), profile=tmp_path / "profile")
    assert requests_of(log) == {url}


@pytest.mark.parametrize("width", [320, PHONE, 1200])
def test_is_no_wider_than_the_screen(page, tmp_path, width):
    ruler = tmp_path / "ruler.html"
    ruler.write_text(RULER.format(page=page.as_uri(), width=width))
    access = "--allow-file-access-from-files"
    dom = chromium(access, "--dump-dom", ruler.as_uri(), profile=tmp_path / "profile")
    assert f"<title>{width} of {width}</title>" in dom
