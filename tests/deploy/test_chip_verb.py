"""`spikeformers chip`: exit codes, JSON and sentences."""

import json

import pytest

from spikeformers.cli import main

CHECK = ["chip", "check", "sdt_tiny", "--image-size", "32"]


def test_chips_are_listed(capsys) -> None:
    assert main(["chip", "list", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["clocked", "event_driven", "speck"]


@pytest.mark.compile
def test_a_model_that_does_not_fit_fails(capsys) -> None:
    assert main([*CHECK, "--chip", "event_driven", "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["verdict"] == "does not fit"
    assert len(facts["failed"]) == len(facts["violations"])
    assert {"path", "operator", "fan_in", "neurons"} < facts["operations"][0].keys()


@pytest.mark.compile
def test_a_model_that_fits_passes(capsys) -> None:
    assert main([*CHECK, "--chip", "clocked"]) == 0
    assert capsys.readouterr().out.endswith("verdict: fits on a clock-driven design\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([*CHECK, "--chip", "speak"], "chip 'speak' is unknown: expected 'speck'"),
        ([*CHECK[:-1], "0", "--chip", "speck"], "expected at least 1"),
        (["chip", "check", "sdt_tiny"], "needs a model and --chip NAME"),
        (["chip", "check", "sdt_tinny", "--chip", "speck"], "sdt_tiny"),
        (["chip", "check", "none.safetensors", "--chip", "speck"], "none.safetensors"),
    ],
)
def test_mistakes_get_one_sentence(arguments, sentence, capsys) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and sentence in printed.err
