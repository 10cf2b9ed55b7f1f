"""A run with rounded weights measures what its integer network reaches; the verb writes that."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from spikeformers.cli import main
from spikeformers.errors import ConfigError
from spikeformers.train import Recipe, evaluate_checkpoint, fit
from spikeformers.transform import IntegerNetwork

SPIKING = "model.overrides.token_mixer={SpikeSepConv: {kernel_size: 3}}"
QUANTIZED = ["train.accelerate=null", "train.quantize=8", SPIKING]

Small = Callable[..., Recipe]
Output = pytest.CaptureFixture[str]


@pytest.mark.compile
def test_a_quantized_run_reaches_what_its_integer_network_does(
    small: Small, tmp_path: Path, capsys: Output
) -> None:
    metrics = fit(small(*QUANTIZED))
    best, out = str(tmp_path / "run" / "best.safetensors"), str(tmp_path / "net.safetensors")
    assert evaluate_checkpoint(best)["confusion"] == metrics["confusion"]
    capsys.readouterr()
    assert main(["quantize", best, "-o", out, "--json"]) == 0, capsys.readouterr().err
    facts = json.loads(capsys.readouterr().out)
    assert facts["top1_after"] == metrics["top1"]
    assert facts["images"] == 10
    assert facts["additions"] > 1000
    assert facts["operations"]["encode"] == 1
    assert len(IntegerNetwork.load(out).operations) == sum(facts["operations"].values())
    assert main(["quantize", best, "-o", out, "--images", "4"]) == 0
    text = capsys.readouterr().out
    assert "after it: 0 floating-point operations, 0 multiplications" in text
    assert "on 4 images" in text


@pytest.mark.parametrize(
    "option", ["train.accelerate=fast", "train.compile=true", "train.sharded=true"]
)
def test_only_the_readable_model_rounds(small: Small, option: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.quantize=8 rounds .* the readable model"):
        fit(small(*QUANTIZED, option))


def test_bits_are_those_of_the_integer_network(small: Small) -> None:
    with pytest.raises(ConfigError, match=r"train\.quantize=4: expected 8"):
        small("train.quantize=4")


@pytest.mark.compile
def test_bad_input_is_one_sentence_and_leaves_no_file(
    small: Small, tmp_path: Path, capsys: Output
) -> None:
    fit(small("train.epochs=1"))
    best, out = str(tmp_path / "run" / "best.safetensors"), tmp_path / "net.safetensors"
    for words, message in (
        ([best], "the model multiplies in 2 operations"),
        ([best, "--images", "0"], "--images 0: expected at least 1"),
        ([best, "data.rot=x"], "quantize takes data.root=FOLDER only"),
        ([str(tmp_path / "none.safetensors")], "there is no checkpoint"),
    ):
        assert main(["quantize", *words, "-o", str(out)]) == 2
        said = capsys.readouterr().err
        assert message in said.splitlines()[-1]
        assert not out.exists()
    assert main(["quantize", best, "-o", str(out), "--merge"]) == 0
    assert out.exists()
