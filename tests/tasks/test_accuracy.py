"""Counting."""

import torch

from spikeformers.tasks import Accuracy


def test_accuracy_per_step_top5_and_confusion() -> None:
    metric = Accuracy(timesteps=2, num_classes=7)
    labels = torch.tensor([0, 1, 6])
    after_one = torch.eye(7)[[0, 0, 0]]
    after_two = torch.eye(7)[[0, 1, 5]] + torch.arange(7) * 0.01
    metric.update(torch.stack([after_one, after_two]), labels)
    figures = metric.compute()
    assert figures["top1_per_step"] == [33.3333, 66.6667]
    assert figures["top1"] == 66.6667 and figures["images"] == 3
    assert figures["top5"] == figures["top5_per_step"][-1] == 100
    assert figures["confusion"][6][5] == figures["confusion"][0][0] == 1
    expected = torch.nn.functional.cross_entropy(after_two, labels).item()
    assert abs(figures["loss"] - expected) < 1e-6


def test_counts_of_parts_add_up() -> None:
    torch.manual_seed(0)
    scores, labels = torch.randn(2, 10, 4), torch.arange(10) % 4
    whole, parts = Accuracy(2, 4), [Accuracy(2, 4), Accuracy(2, 4)]
    whole.update(scores, labels)
    for metric, where in zip(parts, (slice(0, 7), slice(7, None)), strict=True):
        metric.update(scores[:, where], labels[where])
    parts[0].counts = {k: v + parts[1].counts[k] for k, v in parts[0].counts.items()}
    found, expected = parts[0].compute(), whole.compute()
    assert abs(found.pop("loss") - expected.pop("loss")) < 1e-6
    assert found == expected
