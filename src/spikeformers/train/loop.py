"""The training loop, read from top to bottom.

    fit(load_recipe("digits"))

It writes `last.safetensors`, `best.safetensors`, `log.jsonl` and `metrics.json`, and called again
it goes on where it stopped, whether it was asked to stop or was killed. All randomness is a pure
function of (seed, epoch, sample) in the data and of (seed, step, rank) in the model, so nothing of
it needs saving. Under `torchrun` every process runs this function.
"""

import math
import time
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spikeformers.data import Augment, ImageDataset, Mix, Preprocess, epoch_batches, load_dataset
from spikeformers.data.loader import EpochBatches
from spikeformers.errors import StoppedError, TrainingError
from spikeformers.models import load_model
from spikeformers.tasks import Task
from spikeformers.train.checkpoint import good, resume, save_best, save_last
from spikeformers.train.distributed import Ranks, joined
from spikeformers.train.evaluate import (
    augmentation,
    build_model,
    evaluate,
    held_out_batches,
    preprocessing,
    recalibrate,
)
from spikeformers.train.limits import check_threads, keep_freed_memory, within_memory
from spikeformers.train.log import Log, environment, peak_memory, write_json
from spikeformers.train.objective import make_task
from spikeformers.train.optim import learning_rate_at, set_learning_rate
from spikeformers.train.prepare import Training, prepare, steps_per_epoch
from spikeformers.train.recipe import Recipe
from spikeformers.train.stop import Stop, stopping
from spikeformers.transform import simulate_rounding


def fit(recipe: Recipe, device: str | None = None, *, tensorboard: bool = False) -> dict[str, Any]:
    """Train as a recipe says, or resume; return the content of `metrics.json`.

    Args:
        recipe: The experiment.
        device: For example "cuda"; default: a GPU if there is one.
        tensorboard: Write TensorBoard's files beside the log.

    Raises:
        StoppedError: If a signal asked to stop; everything is saved.
        TrainingError: If the loss stops being finite.
        SpikeformersError: If recipe, data or checkpoint are not as they should be, before work
            starts.
    """
    settings, out = recipe.train, Path(recipe.out)
    with joined(device) as ranks, stopping() as stop:
        run = _open(recipe, ranks, stop)
        if ranks.any(run.last.exists()):
            resume(run.last, run.training, recipe)
        done = run.training.done
        parameters = sum(p.numel() for p in run.training.model.parameters())
        goes_on = done.step > 0
        with closing(Log(out, done.epoch if goes_on else None, ranks, tensorboard)) as log:
            if goes_on:
                log.write(event="resume", epoch=done.epoch, step=done.step)
            else:
                log.write(
                    event="start",
                    model=recipe.model.name,
                    parameters=parameters,
                    recipe=recipe.as_dict(),
                    environment={**environment(ranks.device), "ranks": ranks.count},
                )
            log.show_progress(done.step, settings.epochs * run.epoch_steps, settings.batch_size)
            for epoch in range(done.epoch + 1, settings.epochs + 1):
                _one_epoch(run, epoch, log)

        ranks.wait()
        best = load_model(run.best).to(ranks.device)
        if settings.quantize:
            simulate_rounding(best)
        figures = evaluate(best, _held_out(run), run.task, len(done.classes), ranks)
    metrics = {
        **figures,
        "top1_last": done.top1_last,
        "best_epoch": done.best_epoch,
        "epochs": done.epoch,
        "seconds": done.seconds,
        "images_per_second": done.step * settings.batch_size / done.seconds,
        "peak_memory_mib": done.peak_memory_mib,
        "classes": done.classes,
        "model": recipe.model.name,
        "parameters": parameters,
        "ranks": ranks.count,
    }
    if ranks.is_first:
        write_json(out / "metrics.json", metrics)
    return metrics


def measure_pace(recipe: Recipe, device: str | None, seconds: float) -> dict[str, float]:
    """Measure how fast a recipe would train here, over a few steps that are not kept.

    Args:
        recipe: The experiment; nothing of it is written.
        device: As in `fit`.
        seconds: How long to measure at least, after a first step and over five more.

    Returns:
        Seconds that the `start` takes (what the first step takes longer than the others, for
        example to compile) and that an `epoch` takes, as `fit` would count them.
    """
    with joined(device) as ranks:
        run = _open(recipe, ranks, Stop())
        run.training.parallel.train()
        epochs = (_training_batches(run, epoch) for epoch in count(1))
        clock = [time.perf_counter()]
        for images, labels in chain.from_iterable(epochs):
            _step(run, images, labels)
            clock.append(time.perf_counter())
            if len(clock) > 6 and clock[-1] - clock[1] >= seconds:
                break
    step = (clock[-1] - clock[1]) / (len(clock) - 2)
    return {"start": max(0.0, clock[1] - clock[0] - step), "epoch": step * run.epoch_steps}


@dataclass(frozen=True)
class _Run:
    """What a recipe's names stand for, in this process."""

    recipe: Recipe
    ranks: Ranks
    stop: Stop
    train_set: ImageDataset
    test_set: ImageDataset
    preprocess: Preprocess
    augment: Augment
    mix: Mix
    task: Task
    training: Training
    epoch_steps: int

    @property
    def last(self) -> Path:
        return Path(self.recipe.out) / "last.safetensors"

    @property
    def best(self) -> Path:
        return Path(self.recipe.out) / "best.safetensors"


def _open(recipe: Recipe, ranks: Ranks, stop: Stop) -> _Run:
    """Open the data and build the model; whatever does not fit fails here."""
    check_threads(ranks.device)
    keep_freed_memory()
    train_set, test_set = (
        load_dataset(recipe.data.name, recipe.data.root, split, recipe.train.timesteps)
        for split in ("train", "test")
    )
    preprocess = preprocessing(recipe.data, train_set.channels)
    varied = recipe.augment
    return _Run(
        recipe,
        ranks,
        stop,
        train_set,
        test_set,
        preprocess,
        augmentation(recipe, preprocess),
        Mix(varied.mixup, varied.cutmix, len(train_set.classes), varied.mix_chance),
        make_task(recipe, ranks.device),
        prepare(recipe, build_model(recipe, train_set), train_set.classes, ranks),
        steps_per_epoch(recipe.train, len(train_set), ranks),
    )


def _one_epoch(run: _Run, epoch: int, log: Log) -> None:
    """Train, evaluate where it is due, note it and save."""
    settings, done = run.recipe.train, run.training.done
    learned = _train_epoch(run, epoch, log)
    figures: dict[str, Any] = {}
    if epoch % settings.evaluate_every == 0 or epoch == settings.epochs:
        # Evaluation may take long: what was trained is safe before it starts.
        save_last(run.last, run.training, run.recipe)
        figures = _evaluate_epoch(run, epoch)
        done.top1_last = figures.get("top1")
    done.epoch, done.counts = epoch, [0.0, 0.0, 0.0]
    if figures and done.is_beaten_by(figures):
        done.top1, done.loss, done.best_epoch = figures.get("top1"), figures["loss"], epoch
        save_best(run.best, run.training, run.recipe)
    measured = {key: figures.get(key) for key in ("top1", "top5", "top1_per_step")}
    measured["held_out_loss"] = figures.get("loss")
    log.epoch(epoch=epoch, step=done.step, **learned, **measured)
    save_last(run.last, run.training, run.recipe)
    if epoch < settings.epochs:
        _obey(run)


def _train_epoch(run: _Run, epoch: int, log: Log) -> dict[str, float | None]:
    """Take the steps that are left of an epoch; return its mean loss and accuracy."""
    settings, done = run.recipe.train, run.training.done
    before, first, seconds_before = done.step, (epoch - 1) * run.epoch_steps, done.seconds
    batches = _training_batches(run, epoch, first=done.step - first)
    run.training.parallel.train()
    clock = time.perf_counter()
    for images, labels in batches:
        _step(run, images, labels)
        done.seconds = seconds_before + time.perf_counter() - clock
        log.advance(settings.batch_size)
        if settings.checkpoint_steps and done.step % settings.checkpoint_steps == 0:
            save_last(run.last, run.training, run.recipe)
        _obey(run)
    for message in batches.skipped:
        log.say(message, event="skipped", epoch=epoch)

    done.peak_memory_mib = peak_memory(run.ranks.device, so_far=done.peak_memory_mib)
    # A run that was killed after the last step of an epoch has none left to time.
    seconds = done.seconds - seconds_before
    pace = (done.step - before) * settings.batch_size / seconds if seconds else None
    loss_sum, hits, seen = run.ranks.total(torch.tensor(done.counts, dtype=torch.float64)).tolist()
    return {
        "loss": loss_sum / seen,
        "train_top1": None if run.recipe.pretrain else 100 * hits / seen,
        "learning_rate": learning_rate_at(done.step - 1, run.epoch_steps, settings),
        "images_per_second": pace,
        "seconds": seconds,
    }


def _step(run: _Run, images: Tensor, labels: Tensor) -> None:
    """Take the next step of a run, as its number says, on this process' part of a batch."""
    device, step = run.ranks.device, run.training.done.step
    epoch, batch = divmod(step, run.epoch_steps)
    _seed(run)
    images, targets = images.to(device, run.training.dtype), labels.to(device)
    mixed_epochs = run.recipe.augment.mix_epochs
    if mixed_epochs is None or epoch < mixed_epochs:
        images, targets = run.mix(images, targets)
    rate = learning_rate_at(step, run.epoch_steps, run.recipe.train)
    set_learning_rate(run.training.optimizer, rate)
    with within_memory(run.recipe.train):
        _update(run, images, targets, f"step {step} (epoch {epoch + 1}, batch {batch})")
    run.training.done.step += 1


def _update(run: _Run, images: Tensor, targets: Tensor, where: str) -> None:
    """Update the weights once, in micro-batches."""
    settings, training = run.recipe.train, run.training
    training.optimizer.zero_grad()
    parts = zip(images.chunk(settings.accumulate), targets.chunk(settings.accumulate), strict=True)
    for part, target in parts:
        with training.autocast():
            result = run.task.step(training.parallel, part, target)
        loss = result["loss"].item()
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss} at {where}: lower train.learning_rate; {good(run.last)}"
            )
        torch.autograd.backward(training.scaler.scale(result["loss"] / settings.accumulate))
        new = (loss * len(target), int(result.get("hits", 0)), len(target))
        training.done.counts = [a + b for a, b in zip(training.done.counts, new, strict=True)]
    if settings.clip_norm is not None:
        training.scaler.unscale_(training.optimizer)
        nn.utils.clip_grad_norm_(training.model.parameters(), settings.clip_norm)
    training.scaler.step(training.optimizer)
    training.scaler.update()
    if training.average is not None:
        training.average.update_parameters(training.model)


def _evaluate_epoch(run: _Run, epoch: int) -> dict[str, Any]:
    """Re-estimate the batch norms if the recipe says so, and measure on the held-out images."""
    settings, training = run.recipe.train, run.training
    _seed(run)
    some = islice(_training_batches(run, epoch), settings.recalibration_batches)
    images = (batch.to(run.ranks.device, training.dtype) for batch, _ in some)
    recalibrate(training.evaluated, images, settings.timesteps)
    classes = len(training.done.classes)
    return evaluate(training.whole_evaluated(), _held_out(run), run.task, classes, run.ranks)


def _training_batches(run: _Run, epoch: int, first: int = 0) -> EpochBatches:
    return epoch_batches(
        run.train_set,
        run.augment,
        batch_size=run.recipe.train.batch_size,
        seed=run.recipe.train.seed,
        epoch=epoch,
        shuffle=True,
        workers=run.recipe.data.workers,
        drop_last=True,
        first=first,
        rank=run.ranks.rank,
        ranks=run.ranks.count,
        unreadable="replace" if run.recipe.data.unreadable == "skip" else "fail",
    )


def _held_out(run: _Run) -> EpochBatches:
    return held_out_batches(run.recipe, run.test_set, run.preprocess, run.ranks)


def _seed(run: _Run) -> None:
    """Seed what the next step draws (drop path, mixing), so that it depends on nothing before."""
    key = (run.recipe.train.seed, run.training.done.step, run.ranks.rank)
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))


def _obey(run: _Run) -> None:
    """Save and leave if any process was asked to stop."""
    if run.ranks.any(bool(run.stop)):
        save_last(run.last, run.training, run.recipe)
        step, stop = run.training.done.step, run.stop.signal
        name = stop.name if stop else "a signal to another process"
        raise StoppedError(
            f"stopped by {name} after step {step}; saved in {run.last}, "
            "and the same command goes on from there",
            stop or 15,
        )
