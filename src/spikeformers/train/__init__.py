"""Training: recipe -> loop -> checkpoint -> figures."""

from spikeformers.train.evaluate import (
    default_device,
    evaluate,
    evaluate_checkpoint,
    load_trained,
    preprocessing,
)
from spikeformers.train.log import environment
from spikeformers.train.loop import fit
from spikeformers.train.recipe import Recipe, list_recipes, load_recipe

__all__ = [
    "Recipe",
    "default_device",
    "environment",
    "evaluate",
    "evaluate_checkpoint",
    "fit",
    "list_recipes",
    "load_recipe",
    "load_trained",
    "preprocessing",
]
