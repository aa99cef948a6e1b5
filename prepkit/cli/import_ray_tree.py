"""`prepkit zoo import ray-tree`."""

from __future__ import annotations

from pathlib import Path

import click

from prepkit.cli.examples import examples
from prepkit.cli.importing import Making, making_options, source_and_folder
from prepkit.cli.network_options import keep_bn_option
from prepkit.cli.output import Output, json_option


@click.command(
    "ray-tree",
    epilog=examples(
        "prepkit zoo import ray-tree tune_zoo_cifar10_small my-zoo --data cifar10_28px",
        "prepkit zoo import ray-tree tune_zoo_mnist my-zoo --epoch 0 --epoch 50 --splits strict",
    ),
)
@source_and_folder
@click.option("--data", type=click.Path(path_type=Path), metavar="PATH", help="Folder of the images.")
@click.option("--epoch", "epochs", type=int, multiple=True, help="Checkpoints to take. Repeatable. [default: all]")
@click.option("--splits", type=click.Choice(("paper", "sorted", "strict")), help="How to split. [default: not at all]")
@click.option(
    "--order", type=click.Path(path_type=Path), metavar="FILE", help="List of the folders of runs, for --splits paper."
)
@click.option("--unfinished", is_flag=True, help="Take runs too that have no params.json or config.json.")
@making_options
@keep_bn_option
@json_option
def ray_tree(
    source: Path,
    folder: Path,
    data: Path | None,
    epochs: tuple[int, ...],
    splits: str | None,
    order: Path | None,
    unfinished: bool,
    making: Making,
    keep_bn: bool,
    out: Output,
) -> None:
    """Import runs of ray-tune (ModelZooDataset).

    \b
    SRC is a folder that holds runs at any depth, such as finetuning/PRETRAINED/RUN:
      RUN/params.json (or config.json), RUN/result.json
      RUN/checkpoint_000050/checkpoints

    The id is RUN/50. Settings and metrics become columns under their names, such as model::nlin; test_acc is called
    accuracy, and accuracies are shares of 1, also where a run counts percent. Rows are found by training_iteration, or
    by epoch where there is none, never by their line. Where ModelZooDataset counts iterations, 0 is the state before
    training. A run without params.json is unfinished and left out, unless --unfinished takes it.

    Networks are rebuilt from their tensors: small CNNs, ResNets, and those of the Small CNN Zoo in PyTorch. No file
    says how inputs were normalised. With --data, a folder of train/CLASS/*.png and test/CLASS/*.png or torchvision's
    folder of MNIST, Fashion-MNIST, CIFAR-10 or SVHN, running some models decides it, and whether pooling stands before
    the activation. Images are scaled to 28 x 28 or 32 x 32 where networks take no others. Without --data a --task
    tells it, or names tell what is likely. `prepkit zoo verify DST --rerun N --data PATH` proves it.

    --splits strict keeps runs together that began from each other, and leaves copies out: half for testing, four
    tenths for training, one tenth for validation. --splits paper shuffles folders with seed 42, as the published
    loaders do. They shuffle the order in which a file system lists folders, which no copy keeps, so --order FILE has
    to list them. --splits sorted does so with sorted names (70, 15 and 15 %), which is not the published split.
    """
    from prepkit.zoo.importers.kinds import found_by
    from prepkit.zoo.write.model_files import read_task

    options = {"data": data, "epochs": epochs or None, "splits": splits, "order": order, "unfinished": unfinished}
    task = making.about["task"]
    runs = found_by("ray-tree", source, options, None if task is None else read_task(task))
    making.write(folder, runs, {"keep_batch_norm": keep_bn}, out, command="zoo import ray-tree")


COMMANDS = (ray_tree,)
