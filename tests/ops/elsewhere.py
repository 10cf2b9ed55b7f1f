"""Compare the native kernels as other compilers and processors run them: `make test-elsewhere`.

All builds must give the same bits.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

TESTS = Path(__file__).parent
SOURCES = TESTS.parents[1] / "src" / "spikeformers" / "ops" / "csrc"
FLAGS = "-O3 -std=c++17 -pthread -ffp-contract=off -fno-math-errno -fno-trapping-math -Wno-psabi"

BUILDS = {
    "GCC": ("g++", "", ""),
    "Clang": ("clang++", "", ""),
    "Clang, AVX2": ("clang++", "-mavx2 -mfma -mbmi -mbmi2 -mpopcnt", ""),
    "GCC, NEON": ("aarch64-linux-gnu-g++", "-static", "qemu-aarch64-static"),
}
"""Compiler, its flags, and the emulator that runs what it makes."""


def digests(build: str, folder: Path) -> dict[str, str]:
    """Build all kernels with their check, run it, and return a digest of each kernel's results."""
    compiler, flags, emulator = BUILDS[build]
    program = str(folder / "kernels")
    sources = [*map(str, sorted(SOURCES.glob("*.cpp"))), str(TESTS / "sanitize.cpp")]
    command = [compiler, *FLAGS.split(), *flags.split(), f"-I{SOURCES}", *sources, "-o", program]
    subprocess.run(command, check=True)
    run = [emulator, program] if emulator else [program]
    lines = subprocess.run(run, check=True, capture_output=True, text=True).stdout.splitlines()
    return dict(line.split() for line in lines)  # type: ignore[misc]


def main() -> int:
    """Return how many builds disagree with the first one."""
    tools = {tool for compiler, _, emulator in BUILDS.values() for tool in (compiler, emulator)}
    missing = sorted(tool for tool in tools if tool and not shutil.which(tool))
    if missing:
        sys.exit(f"not installed: {', '.join(missing)}")
    found = {}
    with TemporaryDirectory() as folder:
        for build in BUILDS:
            found[build] = digests(build, Path(folder))
            print(f"{build}: {len(found[build])} kernels", flush=True)
    first, *others = found
    wrong = 0
    for build in others:
        differ = [k for k in found[first] if found[build].get(k) != found[first][k]]
        print(f"{build} against {first}: {', '.join(differ) or 'the same bits'}")
        wrong += bool(differ)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
