"""The training loop: one function, read from top to bottom.

    fit(load_recipe("digits"))

It writes `last.safetensors`, `best.safetensors`, `log.jsonl` and `metrics.json`, and called again
it goes on where it stopped. All randomness is a pure function of (seed, epoch, sample) in the data
and of (seed, step) in the model, so nothing of it needs saving.
"""

import math
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spikeformers.data import epoch_batches, load_dataset
from spikeformers.errors import ConfigError, MissingExtraError, TrainingError
from spikeformers.models import load_model
from spikeformers.tasks import Classification
from spikeformers.train.checkpoint import Progress, resume, save_best, save_last
from spikeformers.train.evaluate import (
    augmentation,
    build_model,
    default_device,
    evaluate,
    preprocessing,
    recalibrate,
)
from spikeformers.train.log import Log, environment, write_json
from spikeformers.train.optim import adamw, learning_rate_at
from spikeformers.train.recipe import Recipe


def fit(recipe: Recipe, device: str | None = None) -> dict[str, Any]:
    """Train as a recipe says, or resume; return the content of `metrics.json`.

    Args:
        recipe: The experiment.
        device: For example "cuda"; default: a GPU if there is one.

    Raises:
        SpikeformersError: If recipe, data or checkpoint are not as they should be, before work
            starts; or if the loss stops being finite.
    """
    settings, out, where = recipe.train, Path(recipe.out), default_device(device)
    train_set = load_dataset(recipe.data.name, recipe.data.root, "train")
    test_set = load_dataset(recipe.data.name, recipe.data.root, "test")
    preprocess = preprocessing(recipe.data, train_set.channels)
    augment = augmentation(recipe.data, preprocess)
    model = build_model(recipe, train_set).to(where)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = adamw(model, settings.learning_rate, settings.weight_decay)
    task = Classification(settings.timesteps, settings.label_smoothing)

    steps_per_epoch = len(train_set) // settings.batch_size
    if steps_per_epoch == 0:
        raise ConfigError(
            f"train.batch_size={settings.batch_size}, but there are {len(train_set)} images to "
            "train on: choose a smaller one"
        )
    steps = settings.epochs * steps_per_epoch
    warmup_steps = round(settings.warmup_epochs * steps_per_epoch)

    last, best = out / "last.safetensors", out / "best.safetensors"
    done = Progress(list(train_set.classes))
    if last.exists():
        done = resume(last, model, optimizer, recipe)
    out.mkdir(parents=True, exist_ok=True)
    bar = progress_bar(steps * settings.batch_size, done.epoch / settings.epochs)
    log = Log(out / "log.jsonl", epochs=done.epoch)
    parameters = sum(p.numel() for p in model.parameters())
    if done.epoch == 0:
        log.write(
            event="start",
            model=recipe.model.name,
            parameters=parameters,
            recipe=recipe.as_dict(),
            environment=environment(where),
        )

    for epoch in range(done.epoch + 1, settings.epochs + 1):
        start, loss_sum, hits, seen = time.perf_counter(), 0.0, 0, 0
        batches = epoch_batches(
            train_set,
            augment,
            batch_size=settings.batch_size,
            seed=settings.seed,
            epoch=epoch,
            shuffle=True,
            workers=recipe.data.workers,
            drop_last=True,
        )
        model.train()
        for step, (images, labels) in enumerate(batches, start=(epoch - 1) * steps_per_epoch):
            torch.manual_seed(settings.seed * 1_000_003 + step)
            rate = learning_rate_at(step, steps, warmup_steps, settings.learning_rate)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast(where.type, torch.bfloat16, settings.precision == "bfloat16"):
                result = task.step(model, images.to(where), labels.to(where))
            loss = result["loss"].item()
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss became {loss} at step {step} (epoch {epoch}): lower "
                    f"train.learning_rate; the last good checkpoint is {last}"
                )
            optimizer.zero_grad()
            torch.autograd.backward(result["loss"])
            if settings.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
            optimizer.step()
            loss_sum, hits = loss_sum + loss * len(labels), hits + int(result["hits"])
            seen += len(labels)
            bar.update(len(labels))

        seconds, top1 = time.perf_counter() - start, None
        done.epoch, done.seconds = epoch, done.seconds + seconds
        if epoch % settings.evaluate_every == 0 or epoch == settings.epochs:
            some = islice(batches, settings.recalibration_batches)
            recalibrate(model, (images.to(where) for images, _ in some), settings.timesteps)
            top1 = evaluate(model, test_set, preprocess, task, workers=recipe.data.workers)["top1"]
            done.top1_last = top1
            if done.top1 is None or top1 > done.top1:
                done.top1, done.best_epoch = top1, epoch
                save_best(best, model, recipe, done)
        log.write(
            event="epoch",
            epoch=epoch,
            step=epoch * steps_per_epoch,
            loss=loss_sum / seen,
            learning_rate=rate,
            train_top1=100 * hits / seen,
            top1=top1,
            images_per_second=seen / seconds,
            seconds=seconds,
        )
        save_last(last, model, optimizer, recipe, done)
        bar.set_postfix(epoch=f"{epoch}/{settings.epochs}", top1=done.top1_last)
    bar.close()

    figures = evaluate(load_model(best).to(where), test_set, preprocess, task)
    metrics = {
        **figures,
        "top1_last": done.top1_last,
        "best_epoch": done.best_epoch,
        "epochs": done.epoch,
        "seconds": done.seconds,
        "classes": done.classes,
        "model": recipe.model.name,
        "parameters": parameters,
    }
    write_json(out / "metrics.json", metrics)
    return metrics


def progress_bar(images: int, done: float) -> Any:
    """Return a bar over all images of all epochs, with images/s and the time that is left."""
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise MissingExtraError("tqdm", "train") from error
    return tqdm(
        total=images, initial=round(done * images), unit="img", unit_scale=True, mininterval=0.5
    )
