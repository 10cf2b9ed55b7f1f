"""The command line as a user meets it: verbs, JSON, and one sentence for every mistake."""

import argparse
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import spikeformers as sf
from spikeformers.cli import main
from spikeformers.ops import native
from spikeformers.report import write_report
from tests.golden import Case
from tests.train.small import SMALL, write_small_set

Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run, with its data in `idx` beside it."""
    folder = tmp_path_factory.mktemp("cli")
    write_small_set(folder / "idx")
    where = [f"out={folder / 'run'}", f"data.root={folder / 'idx'}"]
    assert main(["train", "mnist", *SMALL, *where]) == 0
    return folder / "run"


def ask(arguments: list[str], output: Output) -> dict:
    output.readouterr()
    assert main([*arguments, "--json"]) == 0
    return json.loads(output.readouterr().out)


def complaint(arguments: list[str], output: Output) -> str:
    """Return the one sentence that a wrong call prints, with exit code 2 and nothing else."""
    output.readouterr()
    assert main(arguments) == 2
    printed = output.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and "Traceback" not in printed.err
    return printed.err


def test_training_writes_everything(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    expected = {"best.safetensors", "last.safetensors", "metrics.json", "log.jsonl", "report.html"}
    assert expected <= names
    assert "top1" in json.loads((run / "metrics.json").read_text())


def test_eval_prints_the_json_alone_and_agrees_with_the_metrics(run: Path, capsys: Output) -> None:
    figures = ask(["eval", str(run / "best.safetensors")], capsys)
    assert figures["top1"] == json.loads((run / "metrics.json").read_text())["top1"]
    moved = ask(["eval", str(run / "last.safetensors"), f"data.root={run.parent / 'idx'}"], capsys)
    assert moved["images"] == 10


@pytest.mark.slow
def test_compare_writes_a_table_and_a_page(run: Path, tmp_path: Path, capsys: Output) -> None:
    out, models = tmp_path / "out", ["meta_spikeformer_tiny", str(run / "best.safetensors")]
    small = [word for word in SMALL if not word.startswith("model.")]
    verb = ["compare", *models, *small, "--data", str(run.parent / "idx"), "--recipe", "mnist"]
    facts = ask([*verb, "--epochs", "1", "-o", str(out)], capsys)
    assert json.loads((out / "compare.json").read_text()) == facts
    ours, measured = facts["rows"]
    assert ours["train_memory_mib"] > 50 and measured["train_memory_mib"] is None
    assert measured["top1"] == json.loads((run / "metrics.json").read_text())["top1"]
    # Done is done; the page is written again, also by its own verb.
    (out / "compare.html").unlink()
    assert main([*verb, "--epochs", "1", "-o", str(out)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 4 and f"{ours['top1']:.2f}" in table[1].split()
    assert ask(["report", str(out)], capsys) == {"report": str(out / "compare.html")}


def test_compare_exits_with_one_where_a_model_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Output
) -> None:
    def failing(*_: object, **__: object) -> dict:
        row = {"model": "a", "top1": None, "error": "the loss became nan"}
        return {"rows": [row]}

    monkeypatch.setattr("spikeformers.train.compare", failing)
    monkeypatch.setattr("spikeformers.report.write_comparison", lambda _: tmp_path / "page")
    assert main(["compare", "a", "--recipe", "digits"]) == 1
    assert "a: the loss became nan" in capsys.readouterr().out


def test_predict_names_three_classes_for_each_image(
    run: Path, tmp_path: Path, capsys: Output
) -> None:
    paths = []
    for i in range(2):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(np.full((20, 15, 3), 90 * i, dtype=np.uint8)).save(paths[-1])
    rows = ask(["predict", str(run / "best.safetensors"), *paths], capsys)
    assert [row["image"] for row in rows] == paths
    assert all(len(row["classes"]) == 3 and sum(row["probabilities"]) <= 1 for row in rows)


def test_share_makes_a_folder_that_loads(run: Path, tmp_path: Path, capsys: Output) -> None:
    facts = ask(["share", str(run), "-o", str(tmp_path / "shared"), "--license", "mit"], capsys)
    assert facts == {"folder": str(tmp_path / "shared"), "pushed_to": None}
    model, best = sf.from_pretrained(tmp_path / "shared"), sf.load_model(run / "best.safetensors")
    x = torch.rand(2, 1, 1, 16, 16)
    assert torch.equal(model(x), best(x))
    assert "license: mit" in (tmp_path / "shared/README.md").read_text()


def test_list_info_doctor_and_audit(run: Path, capsys: Output) -> None:
    assert ask(["list", "*_15m"], capsys) == {"meta_spikeformer_15m": 15_112_208}
    expected = ask(["list", "--recipes", "imagenet/sdt_v3_1*"], capsys)
    assert expected == {"imagenet/sdt_v3_10m": 78.5, "imagenet/sdt_v3_19m": 79.8}
    facts = ask(["info", "meta_spikeformer_tiny"], capsys)
    parts = [*(stage["parameters"] for stage in facts["stages"]), facts["head_parameters"]]
    assert sum(parts) == facts["parameters"]
    assert ask(["info", str(run / "best.safetensors")], capsys)["in_channels"] == 1
    facts = ask(["doctor"], capsys)
    assert facts["environment"]["torch"] == torch.__version__
    assert facts["kernels"]["level"] == native.level()
    assert facts["kernels"]["each"]["lif_forward"] == (native.level() or "PyTorch")
    verdict = ask(["audit", str(run / "best.safetensors"), "--image-size", "16"], capsys)["verdict"]
    assert verdict == "not spike-driven"


def test_energy_counts_the_test_split_at_the_firing_rate_of_eval(run: Path, capsys: Output) -> None:
    best = str(run / "best.safetensors")
    facts = ask(["energy", best, f"data.root={run.parent / 'idx'}", "--cost", "memory"], capsys)
    assert facts["samples"] == 10
    assert facts["rate"] == pytest.approx(ask(["eval", best], capsys)["firing_rate"])
    assert facts["total"]["mJ"] == facts["mJ"]["memory"] > facts["mJ"]["paper"] > 0
    folder = str(run.parent / "idx")
    steps = f"train.timesteps={facts['timesteps']}"
    named = ["mnist", f"data.root={folder}", "data.image_size=16", steps]
    for data in ([folder], named):
        assert ask(["energy", best, *data, "--cost", "memory"], capsys)["total"] == facts["total"]
    assert main(["energy", best, folder, "train.seed=1"]) == 2
    assert "read as the checkpoint says" in capsys.readouterr().err
    assert main(["energy", best, "nowhere"]) == 2
    assert "no recipe or file 'nowhere'" in capsys.readouterr().err


def test_audit_compares_its_claims_with_a_test_split(run: Path, capsys: Output) -> None:
    best, folder = str(run / "best.safetensors"), str(run.parent / "idx")
    own = ask(["audit", best, "--verify", folder], capsys)["observed"]
    assert own["samples"] == 10 and own["values"] > 10_000
    named = ["--verify", "mnist", f"data.root={folder}", "data.image_size=16"]
    assert ask(["audit", best, *named], capsys)["observed"]["samples"] == 10
    # Images are no spikes.
    assert main(["audit", best, "--verify", folder, "--input", "binary"]) == 2
    assert "outside {0,1}" in capsys.readouterr().err


def test_async_compares_with_the_clocked_run(run: Path, tmp_path: Path, capsys: Output) -> None:
    best, folder = str(run / "best.safetensors"), tmp_path / "async"
    study = ["async", best, "--jitter", "0", "0.5", "--ticks", "2", "--images", "4"]
    facts = ask([*study, "-o", str(folder), f"data.root={run.parent / 'idx'}"], capsys)
    assert json.loads((folder / "async.json").read_text()) == facts
    assert (folder / "async.png").stat().st_size > 5_000
    (model,) = facts["models"]
    assert model["samples"] == 4
    assert [row["agreement"] for row in model["rows"] if row["jitter"] == 0] == [1, 1]


def test_recorded_proofs_become_a_part_of_the_report(run: Path, capsys: Output) -> None:
    best, root = str(run / "best.safetensors"), f"data.root={run.parent / 'idx'}"
    audit = ask(["audit", best, "--image-size", "16", "--record", str(run / "audit.json")], capsys)
    ask(["energy", best, root, "--record", str(run / "energy.json")], capsys)
    chip = ["chip", "check", best, "--image-size", "16", "--chip", "speck"]
    assert main([*chip, "--record", str(run / "chip.json")]) == 1
    assert json.loads((run / "audit.json").read_text()) == audit
    page = write_report(run).read_text()
    assert "Speck 2e" in page and "The folded network is not spike-driven" in page
    for name in ("audit", "energy", "chip"):
        (run / f"{name}.json").unlink()


def test_report_can_be_written_again(run: Path, capsys: Output) -> None:
    page = run / "report.html"
    page.unlink()
    assert ask(["report", str(run)], capsys) == {"report": str(page)}
    assert page.stat().st_size > 10_000


def test_every_verb_explains_itself(capsys: Output) -> None:
    for verb in [
        "train",
        "eval",
        "compare",
        "predict",
        "list",
        "info",
        "audit",
        "energy",
        "chip",
        "async",
        "convert",
        "report",
        "doctor",
    ]:
        with pytest.raises(SystemExit) as stop:
            main([verb, "--help"])
        assert stop.value.code == 0
        assert "Example: spikeformers" in " ".join(capsys.readouterr().out.split())


def test_convert_unwraps_training_checkpoints(tmp_path: Path, capsys: Output) -> None:
    case = Case("sdt_v2__rect_t4")
    state = {name: torch.from_numpy(array) for name, array in case.state().items()}
    average = {f"module.{name}": tensor + 1 for name, tensor in state.items()}
    path, output = tmp_path / "official.pth", tmp_path / "ours.safetensors"
    content = {
        "model": {f"module.{name}": tensor for name, tensor in state.items()},
        "model_ema": average,
        "optimizer": {"state": {0: {"step": 3}}, "param_groups": []},
        "epoch": 7,
        "args": argparse.Namespace(lr=0.1),
    }
    torch.save(content, path)
    arguments = [f"{key}={json.dumps(value)}" for key, value in case.facts["kwargs"].items()]
    convert = ["convert", str(path), "--source", case.source, "-o", str(output), *arguments]
    assert ask(convert, capsys)["tensors"] == len(state)

    model = sf.load_model(output)
    assert model.official_source == case.source
    back = sf.to_official(model)
    assert all(torch.equal(back[name], state[name].to(back[name].dtype)) for name in state)
    with torch.no_grad():
        logits = model.readout(model(case.input()))
    torch.testing.assert_close(logits, case.array("logits"), atol=1e-9, rtol=0)

    ask([*convert, "--ema"], capsys)
    averaged = sf.to_official(sf.load_model(output))["head.bias"]
    assert torch.equal(averaged, state["head.bias"] + 1)


class Payload:
    """A pickle of this creates a file when it is loaded carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_convert_executes_nothing(tmp_path: Path, zipped: bool, capsys: Output) -> None:
    trap, path = tmp_path / "executed", tmp_path / "evil.pth"
    content = {"model": Payload(trap)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    output = tmp_path / "o.safetensors"
    arguments = ["convert", str(path), "--source", "metaspikformer_8_512", "-o", str(output)]
    assert "could execute code" in complaint(arguments, capsys)
    assert not trap.exists() and not output.exists()


def test_mistakes_get_one_sentence_and_exit_code_2(
    run: Path, tmp_path: Path, capsys: Output
) -> None:
    best = str(run / "best.safetensors")
    truncated, foreign, text = (tmp_path / n for n in ("t.safetensors", "f.safetensors", "x.png"))
    truncated.write_bytes(Path(best).read_bytes()[:2000])
    foreign.write_bytes((8).to_bytes(8, "little") + b"{}      ")
    text.write_text("no image")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    official = ["convert", str(truncated), "-o", str(tmp_path / "o")]
    mnist = ["train", "mnist", f"data.root={run.parent / 'idx'}", *SMALL]
    for arguments, expected in [
        (["train", "digitz"], "did you mean 'digits'"),
        (["train", "digits", "train.epoch=1"], "did you mean 'train.epochs'"),
        (["train", "digits", "train.timesteps=0"], "expected at least 1"),
        (["train", "mnist"], "data.root=FOLDER"),
        (["train", "digits", "--device", "cdua"], "--device cdua cannot be used here"),
        (["train", "mnist", f"data.root={tmp_path / 'empty'}"], "is empty"),
        ([*mnist, f"out={tmp_path / 'file' / 'run'}"], str(tmp_path / "file")),
        (["eval", str(tmp_path / "nothing")], "there is no checkpoint"),
        (["eval", str(truncated)], "is damaged"),
        (["eval", str(foreign)], "was not written by spikeformers"),
        (["eval", best, "train.seed=1"], "data.root=FOLDER only"),
        (["compare", "meta_spikeformer_xs32"], "there is no --data: name one with --recipe"),
        (["compare", "xs32", "--data", str(tmp_path)], "no recipe is named like the folder"),
        (["compare", "meta_spikeformer_xs3", "--recipe", "digits"], "did you mean"),
        (["predict", best, str(text)], "cannot read the image"),
        (["predict", best, str(tmp_path / "none.png")], "there is no image file"),
        (["info", "meta_spikeformer_16m"], "did you mean"),
        (["audit", "meta_spikeformer_tiny", "--image-size", "4"], "smaller than the network"),
        (["audit", "meta_spikeformer_tiny", "--timesteps", "0"], "at least 1"),
        (["async", best, "--images", "0"], "--images 0: expected at least 1"),
        (["async", best, "--ticks", "0"], "ticks=0: expected at least 1"),
        (["async", best, "--jitter", "-1"], "jitter=-1.0"),
        (["async", "data.root=x"], "needs a checkpoint"),
        (["chip", "check", best, "--chip", "sprek"], "expected 'speck'"),
        (["energy", best, "--cost", "free"], "expected one of paper, int8, lemaire, memory"),
        (["energy", best, "train.seed=1"], "data.root=FOLDER only"),
        (["audit", best, "--verify", "nowhere"], "there is no recipe or file 'nowhere'"),
        (["audit", best, "train.seed=1"], "without --verify RECIPE there is no recipe"),
        (["audit", best, "--verify", "digits", "--image-size", "8"], "change those there"),
        (
            ["audit", "sdt_tiny", "--verify", str(tmp_path)],
            "write --verify RECIPE data.root=FOLDER",
        ),
        ([*official, "--source", "nobody.py:net"], "is damaged"),
        (["report", str(tmp_path / "empty")], "there is no checkpoint"),
    ]:
        assert expected in complaint(arguments, capsys), arguments
