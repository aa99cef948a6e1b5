"""`prepkit zoo import KIND` for zoos whose numbers stand in arrays, data bases and HDF5 files of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from prepkit.cli.examples import examples
from prepkit.cli.importing import Making, making_options, source_and_folder, splits_option, tree_options
from prepkit.cli.network_options import InputShape
from prepkit.cli.output import Output, json_option


@click.command(
    epilog=examples(
        "prepkit zoo import nino nino_metatrain my-zoo --dataset fm-16 --states ::100",
        "prepkit zoo import nino nino_metatrain my-zoo --dataset c10-16 --runs 0:10 --splits strict",
    )
)
@source_and_folder
@click.option("--dataset", metavar="NAME", help="Set to take, such as fm-16. [default: the only one in SRC]")
@click.option("--states", metavar="NUMBERS", help="States of each run, such as 0:2688:100 or -1. [default: all]")
@click.option("--runs", metavar="NUMBERS", help="Runs to take, such as 0:10. [default: all]")
@splits_option("strict")
@click.option("--layout", type=click.Path(path_type=Path), metavar="FILE", help="JSON file that describes another set.")
@making_options
@json_option
def nino(
    source: Path,
    folder: Path,
    dataset: str | None,
    states: str | None,
    runs: str | None,
    splits: str | None,
    layout: Path | None,
    making: Making,
    out: Output,
) -> None:
    """Import trajectories that NiNo learned from.

    SRC holds NAME.dat, or its parts NAME_p1.dat and so on, and NAME_metrics.dat: float16 numbers in the order run,
    state, parameter. Sizes are checked, models are read one at a time, and their numbers stay float16. A whole set is
    as large as its file (fm-16 has 806,400 states, 23 GB), so --states and --runs take some: numbers that begin at 0
    and slices, with commas between them. Ids are RUN/STATE; run, state and the metrics become columns, test_acc
    also accuracy, from 0 to 1.

    fm-16, c10-16, lm1b-3-24 and lm1b-2-32 are known. The convnets of the first two are rebuilt to run; the language
    models are kept as tensors. Another set needs --layout FILE, whose tensors stand in the order of the numbers:
    {"states": 124, "runs": 200, "metrics": ["train_loss"], "tensors": {"fc.weight": [10, 32], "fc.bias": [10]}}.

    --splits strict keeps the first of states with equal weights, and all states of a run in one split: half for
    testing, four tenths for training, one tenth for validation.
    """
    options = {"dataset": dataset, "states": states, "runs": runs, "splits": splits, "layout": layout}
    making.write_found("nino", source, options, folder, out)


@click.command(
    "gpt-lmdb",
    epilog=examples(
        "prepkit zoo import gpt-lmdb checkpoint_datasets/mnist my-zoo --checkpoints -1 --splits paper",
        "prepkit zoo import gpt-lmdb checkpoint_datasets/cartpole my-zoo --runs 0:100 --checkpoints ::20",
    ),
)
@source_and_folder
@click.option("--runs", metavar="NUMBERS", help="Runs to take, such as 0:100. [default: all]")
@click.option("--checkpoints", metavar="NUMBERS", help="Checkpoints of each run, such as -1 or ::20. [default: all]")
@splits_option("paper", "strict")
@click.option(
    "--layout", type=click.Path(path_type=Path), metavar="FILE", help="JSON file: names and shapes of tensors."
)
@making_options
@json_option
def gpt_lmdb(
    source: Path,
    folder: Path,
    runs: str | None,
    checkpoints: str | None,
    splits: str | None,
    layout: Path | None,
    making: Making,
    out: Output,
) -> None:
    """Import checkpoints of G.pt from LMDB data bases.

    SRC holds folders with data.mdb and runs.json, or is one of them. It is only read, and no lock is written into it;
    the package lmdb is needed: pip install 'prepkit[lmdb]'. --runs counts the runs in the order of the folders, and
    --checkpoints those of each run in the order of runs.json: numbers that begin at 0 and slices, with commas
    between them. Ids are the names of checkpoints; run, epoch, iteration, the metrics and single values of the
    metadata become columns; accuracy is 1 - avg_test_err / 100.

    The networks of MNIST, CIFAR-10 and cartpole are known by the sizes of their tensors, and rebuilt to run. Others
    need --layout FILE, {"fc1.weight": [10, 784], "fc1.bias": [10]}, with all tensors in their order.

    --splits paper keeps the last runs in the order of the folders for testing, as G.pt does: 500 of MNIST, 2,050 of
    CIFAR-10 and of cartpole. A note says so if SRC has not all runs that were published. --splits strict is that of
    `prepkit zoo import nino`.
    """
    options = {"runs": runs, "checkpoints": checkpoints, "splits": splits, "layout": layout}
    making.write_found("gpt-lmdb", source, options, folder, out)


@click.command(
    epilog=examples(
        "prepkit zoo import inr2vec inrs my-zoo",
        "prepkit zoo import inr2vec inrs my-zoo --sizes 3x512x512x512x512x1 --splits strict",
    )
)
@source_and_folder
@click.option(
    "--sizes",
    type=InputShape(),
    metavar="SIZES",
    help="Such as 3x512x512x512x512x1. [default: what fits the parameters]",
)
@tree_options
@splits_option("strict")
@making_options
@json_option
def inr2vec(
    source: Path,
    folder: Path,
    sizes: tuple[int, ...] | None,
    files: dict[str, Any],
    splits: str | None,
    making: Making,
    out: Output,
) -> None:
    """Import SIRENs of shapes that inr2vec saved.

    SRC holds SPLIT/INDEX.h5, each with the numbers of a SIREN as params; or models by --pattern, --from and --table as
    in `prepkit zoo import tree`. The numbers are those of layers of three inputs, equal hidden layers and one output,
    weight before bias. How many layers, and how wide, follows from the number of parameters where one answer fits;
    where several do, --sizes says it.

    Ids are SPLIT/INDEX. index, class_id as label, and other single values become columns; points, meshes and voxels
    stay in the files. Some networks are run at the points of their shapes, and a note says which distance they give
    there; a distance near 0 shows that they are rebuilt as they were trained. A file for the completion of shapes has
    params_incomplete and params_complete, and becomes the instances SPLIT/INDEX/incomplete and SPLIT/INDEX/complete,
    whose column pair is the same.

    --splits strict keeps the first of equal models, and both models of a file in one split, in place of that of the
    folders, which becomes the column split.original.
    """
    options = {**files, "sizes": sizes, "splits": splits}
    making.write_found("inr2vec", source, options, folder, out)


COMMANDS = (nino, gpt_lmdb, inr2vec)
