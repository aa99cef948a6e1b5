"""`prepkit zoo import cnn-wild-park` and `small-transformer-zoo`: zoos of classifiers that are rebuilt as networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from prepkit.cli.examples import examples
from prepkit.cli.importing import Making, making_options, source_and_folder, splits_option, tree_options
from prepkit.cli.output import Output, json_option


@click.command(
    "cnn-wild-park",
    epilog=examples(
        "prepkit zoo import cnn-wild-park cnn_wild my-zoo",
        "prepkit zoo import cnn-wild-park cnn_wild my-zoo --splits paper --split-file cnn_park_splits.json",
    ),
)
@source_and_folder
@click.option(
    "--split-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="JSON file that holds the split of --splits paper.",
)
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
    options = {**files, "splits": splits, "split_file": split_file}
    making.write_found("cnn-wild-park", source, options, folder, out)


@click.command(
    "small-transformer-zoo",
    epilog=examples(
        "prepkit zoo import small-transformer-zoo MNIST-Transformers my-zoo --data mnist",
        "prepkit zoo import small-transformer-zoo zoos my-zoo --dataset ag_news --splits strict",
    ),
)
@source_and_folder
@click.option("--dataset", type=click.Choice(("mnist", "ag_news")), help="Models to take, where SRC has both.")
@click.option("--metadata", type=click.Path(path_type=Path), metavar="FILE", help="CSV file with a row for each model.")
@click.option("--heads", type=click.IntRange(min=1), help="Attention heads. [default: by the table, or running]")
@click.option("--data", type=click.Path(path_type=Path), metavar="PATH", help="Folder of MNIST, to run models on.")
@splits_option("strict")
@making_options
@json_option
def small_transformer_zoo(
    source: Path,
    folder: Path,
    dataset: str | None,
    metadata: Path | None,
    heads: int | None,
    data: Path | None,
    splits: str | None,
    making: Making,
    out: Output,
) -> None:
    """Import the Small Transformer Zoo (Tran et al.).

    \b
    SRC holds MNIST-Transformers, AG-News-Transformers, or what is in them:
      mnist/RUN_EPOCH_SCORE.pt       3k2j9x1a_75_9712.pt, 3k2j9x1a_best1_9730.pt
      metadata/mnist.csv             ckpt_file, ckpt_epoch, test_top1_accuracy, settings

    Columns are run, checkpoint (the text in the name), epoch (the number, if it is one), accuracy and those of the
    table, whose rows are found by the names of files. Notes count files without a row, rows without a file, and those
    that disagree about the accuracy, of which the table's is kept. A row whose sizes are not those of the tensors is
    refused.

    Tensors do not tell whether residual sums are there, nor the number of heads, which the table tells as
    n_attention_heads. With --data, running some models on the test pictures decides; without it networks are built
    without residual sums, as the makers' program does, and a note says that nothing proves it. PATH is a copy of the
    repository ylecun/mnist of the Hub, or a folder with pictures in train/CLASS and test/CLASS.

    The files of AG News lack the embedding of the words, so their networks begin with embedded tokens, and no run can
    prove them; the zoo says so.

    --splits strict keeps the first of models with equal weights, such as a best one that is that of an epoch, and all
    models of a run in one split: half of the runs for testing, four tenths for training, one tenth for validation. The
    published split was drawn without a seed, so nobody can draw it again.
    """
    from prepkit.zoo.importers.kinds import found_by
    from prepkit.zoo.write.model_files import read_task

    options = {"dataset": dataset, "metadata": metadata, "heads": heads, "data": data, "splits": splits}
    task = making.about["task"]
    models = found_by("small-transformer-zoo", source, options, None if task is None else read_task(task))
    making.write(folder, models, {}, out, command="zoo import small-transformer-zoo")


COMMANDS = (cnn_wild_park, small_transformer_zoo)
