"""Training: recipe -> loop -> checkpoint -> figures."""

from spikeformers.train.compare import compare
from spikeformers.train.distributed import default_device, is_first_rank, joined
from spikeformers.train.evaluate import (
    evaluate,
    evaluate_checkpoint,
    load_run,
    load_trained,
    preprocessing,
)
from spikeformers.train.log import environment
from spikeformers.train.loop import fit
from spikeformers.train.recipe import Recipe, list_recipes, load_recipe
from spikeformers.train.share import share_run
from spikeformers.train.verify import verify

__all__ = [
    "Recipe",
    "compare",
    "default_device",
    "environment",
    "evaluate",
    "evaluate_checkpoint",
    "fit",
    "is_first_rank",
    "joined",
    "list_recipes",
    "load_recipe",
    "load_run",
    "load_trained",
    "preprocessing",
    "share_run",
    "verify",
]
