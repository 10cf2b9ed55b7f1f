import os
from pathlib import Path

import pytest

from tests.data.writers import write_image


@pytest.fixture
def image_folder(tmp_path):
    """Two classes; the test split has only the second one."""
    write_image(tmp_path / "train/cat/1.png", (255, 0, 0))
    write_image(tmp_path / "train/cat/2.png", (200, 0, 0), size=(3, 9))
    write_image(tmp_path / "train/dog/1.png", (0, 0, 255))
    write_image(tmp_path / "test/dog/7.png", (0, 0, 200))
    return tmp_path


@pytest.fixture
def real_data():
    """The folder of the real data sets, which the project does not ship; see CONTRIBUTING.md."""
    folder = Path(os.environ.get("SPIKEFORMERS_DATA", "SPIKEFORMERS_DATA is not set"))
    assert folder.is_dir(), f"set SPIKEFORMERS_DATA to the folder of the real data sets: {folder}"
    return folder
