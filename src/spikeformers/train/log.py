"""What a run writes beside its checkpoints: one JSON object per line, and one file of results."""

import importlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

import spikeformers
from spikeformers.errors import MissingExtraError
from spikeformers.train.distributed import Ranks


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


def peak_memory(device: torch.device, so_far: float | None = None) -> float | None:
    """Return the most memory that this process has held, in MiB; `None` where nobody counts it.

    On a GPU its tensors count. On a CPU the whole process does, Python, PyTorch and the data set
    included.

    Args:
        device: Where the process computes.
        so_far: The most that earlier processes of the same run have held.
    """
    if device.type == "cuda":
        held: float | None = torch.cuda.max_memory_allocated(device) / 2**20
    else:
        held = _peak_resident()
    return max(filter(None, (held, so_far)), default=None)


def _peak_resident() -> float | None:
    status = Path("/proc/self/status")
    if status.exists():
        # Not `ru_maxrss`: on Linux a new process inherits the peak of the one that started it.
        peaks = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(peaks[0].split()[1]) / 2**10 if peaks else None
    try:
        import resource
    except ImportError:
        return None
    # Bytes on macOS, KiB elsewhere.
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file, completely or not at all."""
    _replace(path, json.dumps(content, indent=2) + "\n")


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class Log:
    """The run's diary: `log.jsonl`, a progress bar, and TensorBoard's files where wanted.

    Only the first process keeps one.

    Args:
        folder: The run's folder; made if missing.
        epochs: How many finished epochs to keep of what is there; `None` starts anew.
        ranks: The processes at work.
        tensorboard: Write TensorBoard's files too.

    Raises:
        MissingExtraError: If tqdm or tensorboard is not installed.
    """

    def __init__(self, folder: Path, epochs: int | None, ranks: Ranks, tensorboard: bool) -> None:
        self.path = folder / "log.jsonl"
        self.is_kept = ranks.is_first
        tqdm = _extra("tqdm", "train").tqdm
        writer = _extra("torch.utils.tensorboard", "tensorboard") if tensorboard else None
        if self.is_kept:
            folder.mkdir(parents=True, exist_ok=True)
            goes_on = epochs is not None and self.path.exists()
            lines = self.path.read_text().splitlines() if goes_on else []
            kept = [line for line in lines if _belongs(line, epochs or 0)]
            _replace(self.path, "".join(f"{line}\n" for line in kept))
        # The bar comes last: whatever fails before it is not written across it.
        self.board = None
        if writer is not None and self.is_kept:
            self.board = writer.SummaryWriter(
                str(folder / "tensorboard"), purge_step=(epochs or 0) + 1
            )
        self.bar = tqdm(
            total=0, unit="img", unit_scale=True, mininterval=0.5, disable=not self.is_kept
        )

    def write(self, **entry: Any) -> None:
        """Append one line."""
        if self.is_kept:
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")

    def epoch(self, **facts: Any) -> None:
        """Note what an epoch has brought."""
        self.write(event="epoch", **facts)
        if facts["top1"] is not None:
            self.bar.set_postfix(epoch=facts["epoch"], top1=facts["top1"])
        if self.board is not None:
            for key, value in facts.items():
                if isinstance(value, float):
                    self.board.add_scalar(key, value, facts["epoch"])
            for t, value in enumerate(facts.get("top1_per_step") or [], start=1):
                self.board.add_scalar(f"anytime/top1_after_{t}", value, facts["epoch"])
            self.board.flush()

    def say(self, message: str, **entry: Any) -> None:
        """Note a message, and show it whichever process it comes from."""
        self.bar.write(message, file=sys.stderr)
        self.write(message=message, **entry)

    def show_progress(self, done: int, steps: int, batch_size: int) -> None:
        """Show how far the run is, in images, with images/s and the time that is left."""
        self.bar.reset(steps * batch_size)
        self.bar.initial = self.bar.n = done * batch_size
        self.bar.refresh()

    def advance(self, images: int) -> None:
        """Move the progress bar."""
        self.bar.update(images)

    def close(self) -> None:
        """Finish the bar's line and TensorBoard's file."""
        self.bar.close()
        if self.board is not None:
            self.board.close()


def _extra(module: str, extra: str) -> Any:
    """Import a module that an extra brings, before anything is written."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(module.rpartition(".")[2], extra) from error


def _belongs(line: str, epochs: int) -> bool:
    """Whether a line stems from the first `epochs` epochs; a line cut off by a crash does not."""
    try:
        entry = json.loads(line)
    except json.JSONDecodeError:
        return False
    return bool(entry.get("event") == "start" or entry.get("epoch", epochs + 1) <= epochs)
