"""What a run writes beside its checkpoints: one JSON object per line, and one file of results."""

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch

import spikeformers


def environment(device: torch.device) -> dict[str, Any]:
    """Return the versions and the hardware that a measured number depends on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "spikeformers": spikeformers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
    }


def _cpu_name() -> str:
    """Return the processor's model name; only Linux tells it in words."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, completely or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, path)


class Log:
    """A file of JSON lines.

    Args:
        path: The file.
        epochs: How many finished epochs to keep of what is there; 0 starts a new file.
    """

    def __init__(self, path: Path, epochs: int) -> None:
        self.path = path
        lines = path.read_text().splitlines() if epochs and path.exists() else []
        kept = [line for line in lines if _belongs(line, epochs)]
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(f"{line}\n" for line in kept))
        os.replace(partial, path)

    def write(self, **entry: Any) -> None:
        """Append one line."""
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def _belongs(line: str, epochs: int) -> bool:
    """Whether a line stems from the first `epochs` epochs; a line cut off by a crash does not."""
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return False
    return bool(entry.get("event") == "start" or entry.get("epoch", epochs + 1) <= epochs)
