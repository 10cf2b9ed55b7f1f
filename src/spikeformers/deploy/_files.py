"""Files that are written completely or not at all, and never over something else."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spikeformers.errors import ExportError


@contextmanager
def new_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield where to write a file or a folder; it gets its name if the block ends well.

    Raises:
        ExportError: If there is something of that name.
    """
    path = Path(path)
    if path.exists():
        raise ExportError(f"{path} exists already: give another name, or remove it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)
