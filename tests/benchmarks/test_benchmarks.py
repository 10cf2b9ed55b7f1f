"""The harness of the benchmarks: it counts right, and every case runs on something tiny."""

import json
import os
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import benchmarks.__main__ as command
import pytest
import torch
from benchmarks.cases import JOBS, Job
from benchmarks.measure import fresh, interleaved, saved_bytes
from benchmarks.neurons import Neurons, lif_forward, lif_forward_backward
from benchmarks.results import Row
from benchmarks.scaling import Curve
from benchmarks.sides import SIDES, Network
from torch import Tensor, nn

from benchmarks import cases, scaling, training

TINY = Network(dims=(8, 8, 16, 16, 24), depths=(1, 1, 1, 1, 1), heads=4, timesteps=2, image_size=32)
CONTRACT = ["case", "peer", "ratio", "ours", "theirs", "unit", "dtype_ours", "dtype_peer"]
CONTRACT += ["firing_rate_measured", "isa", "allocator", "threads"]


def row(**facts: object) -> Row:
    shared = dict.fromkeys(Row.__dataclass_fields__.keys() - {"ratio"}, "")
    return Row.of(**{**shared, "firing_rate_measured": 0.1, **facts})


def test_calls_take_turns_and_the_warm_up_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    order, now = [], [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def takes(name: str, *seconds: float) -> None:
        order.append(name)
        now[0] += seconds[order.count(name) - 1]

    calls = dict(a=lambda: takes("a", 90, 1, 2, 9), b=lambda: takes("b", 80, 5, 5, 5))
    assert interleaved(calls, rounds=3) == dict(a=2, b=5)
    assert "".join(order) == "abababab"


class Twice(torch.autograd.Function):
    """Saves one tensor, and a view of it."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        kept = x + 1
        ctx.save_for_backward(kept, kept[:2])
        return 2 * x


def test_saved_bytes_count_every_storage_once_without_the_model() -> None:
    linear = nn.Linear(16, 16, bias=False)
    x = torch.ones(8, 16)
    # The product keeps x and its weight, the function one tensor of the same size as x.
    assert saved_bytes(linear, lambda: Twice.apply(linear(x))) == 2 * x.nbytes


def test_of_rates_more_is_better_and_of_times_and_bytes_less() -> None:
    assert row(ours=2.0, theirs=6.0, unit="ms").ratio == 3
    assert row(ours=2.0, theirs=6.0, unit="MiB").ratio == 3
    assert row(ours=30.0, theirs=40.0, unit="GB/s").ratio == 0.75


def test_both_sides_train_the_same_network() -> None:
    sides = ("fast", "low", "spikingjelly-eager", "spikingjelly-memopt")
    losses = [SIDES[side](TINY).loss().item() for side in sides]
    assert losses[1:] == pytest.approx(losses[:1] * 3, rel=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steps_and_saved_activations(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "ROUNDS", 1)
    network = Network(**{**vars(TINY), "dtype": dtype})
    for measure in (training.train_step, training.saved_activations):
        fast, low = measure(network, "spikingjelly-eager")
        assert (fast["memory"], low["memory"]) == ("fast", "low")
        assert fast["theirs"] == low["theirs"] > 0 < min(fast["ours"], low["ours"])
        assert fast["dtype_ours"] == fast["dtype_peer"] == dtype
        assert 0 < fast["firing_rate_measured"] < 0.5


@pytest.mark.parametrize("measure", [lif_forward, lif_forward_backward])
def test_neurons_alone(measure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.neurons.ROUNDS", 1)
    peer, copy = measure(Neurons(values=4000), "spikingjelly-eager")
    assert (peer["peer"], peer["unit"]) == ("spikingjelly-eager", "ms")
    assert (copy["peer"], copy["unit"]) == ("copy-bandwidth", "GB/s")
    assert peer["firing_rate_measured"] == pytest.approx(0.1, abs=0.02)


def test_peaks_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "fresh", lambda function, *args: function(*args))
    for facts in training.peak_rss(TINY, "spikingjelly-eager"):
        # A process with Python and PyTorch in it holds more than this, in MiB.
        assert min(facts["ours"], facts["theirs"]) > 100


def test_a_fresh_process_has_its_own_environment() -> None:
    assert fresh(os.getenv, "GLIBC_TUNABLES", GLIBC_TUNABLES="a=1") == "a=1"
    assert os.getenv("GLIBC_TUNABLES") is None
    with pytest.raises(BrokenProcessPool):
        fresh(os._exit, 1)


def test_a_run_writes_every_row_with_a_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = "spikingjelly-eager"
    jobs = (
        Job("train-step", training.train_step, peer, Neurons(), ("default",)),
        Job("lif-forward", lif_forward, peer, Neurons(values=4000)),
        Job("train-step", training.train_step, peer, TINY, is_short=False),
    )
    monkeypatch.setattr(command, "JOBS", jobs)
    monkeypatch.setattr(cases, "fresh", lambda function, *args, **_: function(*args))
    out = tmp_path / "results" / "rows.json"
    # The first measurement fails; its rows are absent, and the others are there.
    assert command.main(["--short", "--threads", "1", "--out", str(out)]) == 1
    rows = json.loads(out.read_text())
    assert all(list(row)[: len(CONTRACT)] == CONTRACT for row in rows)
    assert [(row["peer"], row["allocator"], row["threads"]) for row in rows] == [
        ("spikingjelly-eager", "default", 1),
        ("copy-bandwidth", "default", 1),
        ("spikingjelly-eager", "raised-thresholds", 1),
        ("copy-bandwidth", "raised-thresholds", 1),
    ]
    assert sorted(path.name for path in out.parent.iterdir()) == ["rows.json", "rows.png"]
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == len(rows) + 1
    assert printed.err.startswith(
        "no train-step against spikingjelly-eager, LIF, T=4, 50,000,000 neurons * T: "
    )


def test_one_case_does_not_replace_the_results_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job("lif-forward", lif_forward, "spikingjelly-eager", Neurons(values=4000), ("default",))
    monkeypatch.setattr(command, "JOBS", (job,))
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setattr(cases, "fresh", lambda function, *args, **_: function(*args))
    assert command.main(["--case", "lif-forward"]) == 0
    assert command.main([]) == 0
    names = ["latest.json", "latest.png", "lif-forward.json", "lif-forward.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.parametrize("wrong", [["--threads", "0"], ["--case", "rest"], ["--out", "/proc/a/b"]])
def test_wrong_arguments_are_refused_before_anything_is_measured(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        command.main(wrong)
    assert stop.value.code == 2


def test_a_curve_knows_its_line_and_how_far_it_is_off(tmp_path: Path) -> None:
    straight = Curve("straight", "T", [1, 2, 4], [5.0, 7.0, 11.0])
    square = Curve("square", "N", [1, 2, 3, 4], [1.0, 4.0, 9.0, 16.0])
    assert straight.line == pytest.approx((2, 3))
    assert straight.error == pytest.approx(0, abs=1e-12)
    assert square.error > 0.2
    scaling.write([straight, square], tmp_path / "scaling.json")
    first, _ = json.loads((tmp_path / "scaling.json").read_text())
    assert (first["slope"], first["intercept"]) == pytest.approx((2, 3))
    assert (tmp_path / "scaling.svg").exists()


def test_a_curve_is_measured() -> None:
    steps = {side**2: scaling.attention_step(side) for side in (2, 4)}
    curve = scaling.curve("attention", "N", steps)
    assert curve.sizes == [4, 16]
    assert min(curve.milliseconds) > 0


def test_the_registry_has_every_case_of_the_headline() -> None:
    short = {job.case for job in JOBS if job.is_short}
    assert short == {
        "train-step",
        "saved-activations",
        "peak-rss",
        "lif-forward",
        "lif-forward-backward",
    }
    assert all(set(job.allocators) <= set(cases.ALLOCATORS) for job in JOBS)
