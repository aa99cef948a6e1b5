"""`netspace train` and `netspace recipes`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from netspace.cli.common import PATH, ZOO_PLACE, data_option
from prepkit.cli.common import device_option
from prepkit.cli.completion import names
from prepkit.cli.examples import examples
from prepkit.cli.output import Output, json_option
from prepkit.support.json_values import json_value
from prepkit.support.text import table

if TYPE_CHECKING:
    from netspace.run.run import Run


def _recipes() -> list[str]:
    from netspace.recipe import recipe_names

    return recipe_names()


@click.command(
    epilog=examples(
        "netspace train digits_multi --zoo zoo --out run",
        "netspace train digits_multi --zoo zoo --out run --resume",
        "torchrun --nproc-per-node 2 -m netspace train cifar10_multi --zoo zoo --out run",
    )
)
@click.argument("recipe", metavar="RECIPE", shell_complete=names(_recipes, or_path=True))
@click.option(
    "--zoo",
    required=True,
    type=ZOO_PLACE,
    metavar="ZOO",
    help="Zoo to learn from: a folder, hf://user/zoo or s3://bucket/zoo.",
)
@click.option("--out", "folder", required=True, type=PATH, metavar="RUN", help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Go on with the run in this folder.")
@device_option
@click.option("--seed", type=click.IntRange(min=0), help="Seed of the training. [default: the recipe's]")
@click.option("--steps", type=click.IntRange(min=1), help="Number of steps. [default: the recipe's]")
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a value of the recipe: optimizer.clip=1.",
)
@data_option
@json_option
def train(
    recipe: str,
    zoo: Path | str,
    folder: Path,
    resume: bool,
    device: str,
    seed: int | None,
    steps: int | None,
    changes: tuple[str, ...],
    data: Path | None,
    out: Output,
) -> None:
    """Train a NetSpace on a zoo.

    RECIPE is the name of a built-in recipe (`netspace recipes`) or the path of a TOML file.

    The run's folder holds recipe, metrics, checkpoints and TensorBoard's log. Ctrl-C keeps the state; --resume goes on
    with it, to the same losses.
    """
    from netspace.recipe import load_recipe
    from netspace.training.trainer import train as train_space
    from prepkit.cli.allocator import keep_freed_memory
    from prepkit.support.processes import is_first_process

    options = (("training.seed", seed), ("training.steps", steps))
    values = changed_once([*map(parse_change, changes), *(each for each in options if each[1] is not None)])
    keep_freed_memory()
    with out.bar("training", "step") as bar:
        run = train_space(
            load_recipe(recipe, values), zoo, folder, resume=resume, device=device, data=data, progress=bar
        )
    if is_first_process():
        print_run(run, out)


@click.command(epilog=examples("netspace recipes", "netspace recipes digits_multi > mine.toml"))
@click.argument("name", required=False, shell_complete=names(_recipes))
@json_option
def recipes(name: str | None, out: Output) -> None:
    """List the built-in recipes, or print one of them.

    With NAME the recipe itself is printed, a TOML file. Save it, change it, and give its path to `netspace train`.
    """
    from netspace.recipe import load_recipe, recipe_names, recipe_text

    if name is not None:
        text = recipe_text(name)
        out.result({"name": name, "toml": text}, text.rstrip("\n"))
        return
    known = [load_recipe(name) for name in recipe_names()]
    rows = [(recipe.name, recipe.setting, recipe.zoo, recipe.description) for recipe in known]
    text = table(rows, ("name", "setting", "zoo", "description"))
    out.result({"recipes": [recipe.to_dict() for recipe in known]}, text)


def parse_change(text: str) -> tuple[str, Any]:
    """Parse `optimizer.clip=1` to ("optimizer.clip", 1); a value that TOML cannot read is a text."""
    import tomllib

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise click.BadParameter(f"{text!r} is not KEY=VALUE, such as optimizer.clip=1.", param_hint="--set")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def changed_once(changes: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return values by key; raises UsageError for a key that is changed twice, as no order of them was meant."""
    values: dict[str, Any] = {}
    for key, value in changes:
        if key in values:
            raise click.UsageError(f"{key} is to be {values[key]!r} and {value!r}; give one value.")
        values[key] = value
    return values


def print_run(run: Run, out: Output) -> None:
    """Print what was trained, as text or as one JSON document."""
    best = run.facts("best")
    text = f"{run.path}: not validated yet"
    if best is not None:
        scores = " ".join(f"{name} {value:.4g}" for name, value in best["scores"].items())
        text = (
            f"{run.path}: best after step {best['step']}: {scores}\n"
            f"`netspace evaluate {run.path}` compares unseen instances with what it predicts for them."
        )
    out.result({"output": str(run.path), "recipe": run.recipe.name, "best": json_value(best)}, text)
