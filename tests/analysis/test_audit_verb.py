"""`spikeformers audit` as a gate in someone's tests."""

import json

import pytest

from spikeformers.cli import main

pytestmark = pytest.mark.compile

SMALL = ["--image-size", "32", "--timesteps", "1"]


def facts_of(arguments: list[str], code: int, output: pytest.CaptureFixture[str]) -> dict:
    assert main(["audit", *arguments, *SMALL, "--json"]) == code
    return json.loads(output.readouterr().out)


def test_without_a_gate_every_verdict_is_fine(capsys) -> None:
    facts = facts_of(["meta_spikeformer_tiny"], 0, capsys)
    assert facts["verdict"] == "not spike-driven" and "failed" not in facts


@pytest.mark.parametrize(
    ("model", "gate", "failed"),
    [
        ("sdt_tiny", "integer", []),
        ("sew_net_tiny", "mac", []),
        ("sew_net_tiny", "integer", ["stages.1.blocks.block.fn.0.synapse: ACx"]),
        ("spikingformer_tiny", "mac", ["head.linear: MAC"]),
        ("sdt_v3_tiny", "mac", ["stages.3.blocks.0.attn.fn: MACint"]),
    ],
)
def test_a_gate_names_what_fails(model, gate, failed, capsys) -> None:
    facts = facts_of([model, "--fail-on", gate], 1 if failed else 0, capsys)
    assert facts.get("failed", [])[:1] == failed


def test_a_gate_says_how_much_failed(capsys) -> None:
    assert main(["audit", "spikingformer_tiny", *SMALL, "--fail-on", "mac"]) == 1
    assert capsys.readouterr().out.endswith("failed on mac: 1 operation\n")


@pytest.mark.parametrize(
    ("kind", "first"),
    [("analog", ["image", "encode"]), ("binary", ["{0,1}", "AC"]), ("counts", ["{0..255}", "ACx"])],
)
def test_the_input_decides_about_the_first_layer(kind, first, capsys) -> None:
    row = facts_of(["sdt_tiny", "--input", kind], 0, capsys)["rows"][0]
    assert [row["operands"][0], row["verdict"]] == first


def test_a_model_of_only_one_size_is_shown_that_size(capsys) -> None:
    assert main(["audit", "stmixer_tiny"]) == 0
    assert main(["audit", "stmixer_tiny", "--image-size", "24"]) == 2
    assert "24" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["0", "-3"])
def test_an_image_has_a_side(size, capsys) -> None:
    assert main(["audit", "sdt_tiny", "--image-size", size]) == 2
    assert f"--image-size {size}: expected at least 1" in capsys.readouterr().err


def test_a_model_whose_graph_the_data_decides_is_refused(capsys) -> None:
    assert main(["audit", "stas_tiny", *SMALL]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "no fixed graph" in printed.err
