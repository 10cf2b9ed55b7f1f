"""Rows of results, and the file that holds them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spikeformers.train.log import write_json


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison.

    Attributes:
        case: What was measured.
        peer: With whom.
        ratio: How many times better ours is; against copy-bandwidth the share reached.
        ours: Our figure.
        theirs: The peer's.
        unit: Of both figures.
        dtype_ours: As torch calls it.
        dtype_peer: As torch calls it.
        firing_rate_measured: Spikes / (neurons * T).
        isa: Instruction level of our kernels.
        allocator: Setting of the C library's allocator, see `cases.ALLOCATORS`.
        threads: Of both sides.
        memory: Mode of `accelerate`; `None` where no model takes part.
        setting: Network, batch and threshold in words.
        environment: Processor and versions.
    """

    case: str
    peer: str
    ratio: float
    ours: float
    theirs: float
    unit: str
    dtype_ours: str
    dtype_peer: str
    firing_rate_measured: float
    isa: str
    allocator: str
    threads: int
    memory: str | None
    setting: str
    environment: dict[str, Any]

    @classmethod
    def of(cls, *, ours: float, theirs: float, unit: str, **facts: Any) -> "Row":
        """Compute the ratio: of a rate more is better, of times and bytes less."""
        ratio = ours / theirs if unit.endswith("/s") else theirs / ours
        return cls(ratio=ratio, ours=ours, theirs=theirs, unit=unit, **facts)

    def __str__(self) -> str:
        mode = f" {self.memory}" if self.memory else ""
        return (
            f"{self.case + mode:24} {self.peer:22} {self.dtype_ours:9} {self.allocator:18}"
            f"{self.ratio:6.2f}  {self.ours:9.1f} {self.theirs:9.1f} {self.unit:5}"
            f"{self.firing_rate_measured:6.1%}"
        )


def write(rows: Sequence[Row], path: Path) -> None:
    """Write all rows, completely or not at all."""
    write_json(path, [asdict(row) for row in rows])
