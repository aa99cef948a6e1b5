"""`prepkit zoo import cnn-wild-park`: zoos of classifiers that are rebuilt as networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from prepkit.cli.importing import Making, making_options, splits_option, tree_options
from prepkit.cli.output import Output, json_option


@click.command("cnn-wild-park")
@click.argument("source", type=click.Path(path_type=Path), metavar="SRC")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DST")
@click.option("--split-file", type=click.Path(path_type=Path), metavar="FILE", help="JSON file of --splits paper.")
@tree_options
@splits_option("paper", "strict")
@making_options
@json_option
def cnn_wild_park(
    source: Path,
    folder: Path,
    split_file: Path | None,
    files: dict[str, Any],
    splits: str | None,
    making: Making,
    out: Output,
) -> None:
    """Import the CNN Wild Park (Kofinas et al.).

    \b
    SRC holds cifar10_zooV2, cnn_wild or the runs themselves:
      RUN/checkpoint_000010/checkpoint.pt
    or models by --pattern, --from and --table as in `prepkit zoo import tree`.

    Each network is rebuilt from the config in its file (depth, channels, kernels, stride, padding, activations and
    residual sums), so a zoo has many architectures. A file whose tensors are not as its config says is refused. What a
    file says becomes columns, such as iteration, config.activation, which is a list, and accuracy, which the file calls
    last_result.test/acc. The state of the optimizer stays in the files. No pickle is run.

    --splits paper is the published split, as in FILE, or in cnn_park_splits.json in SRC or beside it; notes count
    models that it does not name and scores that differ from those of the files. --splits strict keeps the first of
    models with equal weights, and all checkpoints of a run in one split: half of the runs for testing, four tenths for
    training, one tenth for validation.

    The task of the zoo is CIFAR-10 as the makers normalised it, unless --task names another. `prepkit zoo verify DST
    --rerun N --data PATH` runs N of the networks and compares their accuracies.
    """
    from prepkit.zoo.importers.kinds import found_by

    options = {**files, "splits": splits, "split_file": split_file}
    making.write(folder, found_by("cnn-wild-park", source, options), {}, out, command="zoo import cnn-wild-park")


COMMANDS = (cnn_wild_park,)
