"""What docs/scaling.md shows works."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from spikeformers.data import load_dataset

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"


def test_the_shards_that_the_page_writes_can_be_read(tmp_path: Path) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    namespace: dict = {}
    exec(snippet, namespace)
    for i, name in enumerate(("ant", "bee", "cat")):
        for split, count in (("train", 3), ("val", 1)):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for n in range(count):
                shade = np.full((8, 8, 3), 80 * i + 40, np.uint8)
                Image.fromarray(shade).save(folder / f"{n}.jpg")
    for split in ("train", "val"):
        namespace["write_shards"](tmp_path / "images", tmp_path, split, size=4)
    assert len([*tmp_path.glob("train-*.tar")]) == 3
    train, val = load_dataset("webdataset", tmp_path), load_dataset("webdataset", tmp_path, "test")
    assert (len(train), len(val)) == (9, 3)
    assert train.classes == val.classes == ("ant", "bee", "cat")
    assert all(int(image.max()) // 80 == label for image, label in (*train, *val))
