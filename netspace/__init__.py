"""NetSpace: an encoder-decoder over PReps that learns a space of networks (arXiv 2206.05194).

    run = netspace.train(netspace.load_recipe("digits_multi"), "zoo", "run")
    space = netspace.load("run")                    # ready to use
    preps = space.decode(space.encode(preps))       # [N, H, W] -> [N, E] -> [N, H, W]

The package lives on prepkit's public names and never the other way round. Names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netspace.explore.embedding import embed as embed
    from netspace.explore.interpolation import interpolate as interpolate
    from netspace.explore.optimization import optimize as optimize
    from netspace.explore.sampling import sample as sample
    from netspace.recipe import Recipe as Recipe
    from netspace.recipe import load_recipe as load_recipe
    from netspace.run.run import Run as Run
    from netspace.run.run import load as load
    from netspace.run.run import open_run as open_run
    from netspace.space.evaluation import evaluate as evaluate
    from netspace.space.network import Decoder as Decoder
    from netspace.space.network import Encoder as Encoder
    from netspace.space.network import NetSpace as NetSpace
    from netspace.space.prediction import predict as predict
    from netspace.training.losses import boundary_pairs as boundary_pairs
    from netspace.training.losses import gammas as gammas
    from netspace.training.losses import interpolate_embeddings as interpolate_embeddings
    from netspace.training.losses import loss_class as loss_class
    from netspace.training.losses import loss_gamma as loss_gamma
    from netspace.training.losses import loss_kd as loss_kd
    from netspace.training.losses import loss_multi as loss_multi
    from netspace.training.losses import loss_pred as loss_pred
    from netspace.training.losses import loss_pred_signal as loss_pred_signal
    from netspace.training.trainer import train as train

_HOMES = {
    "Decoder": "space.network",
    "Encoder": "space.network",
    "NetSpace": "space.network",
    "Recipe": "recipe",
    "Run": "run.run",
    "boundary_pairs": "training.losses",
    "embed": "explore.embedding",
    "evaluate": "space.evaluation",
    "gammas": "training.losses",
    "interpolate": "explore.interpolation",
    "interpolate_embeddings": "training.losses",
    "load": "run.run",
    "load_recipe": "recipe",
    "loss_class": "training.losses",
    "loss_gamma": "training.losses",
    "loss_kd": "training.losses",
    "loss_multi": "training.losses",
    "loss_pred": "training.losses",
    "loss_pred_signal": "training.losses",
    "open_run": "run.run",
    "optimize": "explore.optimization",
    "predict": "space.prediction",
    "sample": "explore.sampling",
    "train": "training.trainer",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'netspace' has no attribute '{name}'")
    value = getattr(import_module(f"netspace.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
