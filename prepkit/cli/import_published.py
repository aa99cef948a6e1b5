"""`prepkit zoo import KIND` for networks that lists, saved objects or tables of the Hub tell of."""

from __future__ import annotations

from pathlib import Path

import click

from prepkit.cli.examples import examples
from prepkit.cli.importing import Making, making_options, packing_of, source_and_folder
from prepkit.cli.network_options import NetworkOptions, keep_bn_option, network_options
from prepkit.cli.output import Output, json_option
from prepkit.cli.pairs import Pairs

TABLE = click.option(
    "--table", type=click.Path(path_type=Path), metavar="FILE", help="CSV, TSV, JSON or JSONL with columns."
)
TYPES = click.option(
    "--types",
    type=Pairs("COLUMN=TYPE,...", "types such as accuracy=float,code=text"),
    help="Types of its columns, such as day=date,loss=list. [default: by their cells]",
)


@click.command(
    "netspace-lists",
    epilog=examples(
        "prepkit zoo import netspace-lists configs my-zoo --root reference",
        'prepkit zoo import netspace-lists configs my-zoo --teacher "resnet_fusedbn;d4;d56;scifar10;resnet56.pt"',
    ),
)
@source_and_folder
@click.option("--list", "lists", multiple=True, metavar="FILE", help="List to take. Repeatable. [default: SRC/*.txt]")
@click.option("--root", type=click.Path(path_type=Path), metavar="PATH", help="Folder that paths in lists start from.")
@click.option("--teacher", metavar="LINE", help="Line of the teacher: resnet_fusedbn;d4;d56;scifar10;PATH.")
@TABLE
@TYPES
@making_options
@json_option
def netspace_lists(
    source: Path,
    folder: Path,
    lists: tuple[str, ...],
    root: Path | None,
    teacher: str | None,
    table: Path | None,
    types: dict[str, str] | None,
    making: Making,
    out: Output,
) -> None:
    """Import lists of NetSpace's reference code.

    \b
    SRC is the folder of train.txt, val.txt and test.txt, in which a line names a network:
      lenetlike;d0;scifar10;models/ckpts/cifar10/multi/lenet/0.pt
      resnet_fusedbn;d2;d8;scifar10;models/ckpts/cifar10/multi/resnet8/0.pt
    or one such list, or the folder of the .pt files of signed distance functions.

    Each list is a split; val becomes validation. Paths start from --root, or from the first of SRC, the folders above
    it and the current one where a file is. Networks become those that are built in, such as resnet8@cifar10, and
    BatchNorms are folded with a proof. For zoos of several architectures netspace needs the teacher too. Rows of
    --table name networks by path, in a column `file`.

    The zoo's task is that of the reference, with its normalisation; its last 10,000 training images of CIFAR-10, which
    were for validation, are among those for training. With a column `accuracy` (0 to 1, on the test data),
    `prepkit zoo verify DST --rerun N` proves how the networks run.

    Signed distance functions ({"mlp": ..., "sdf": points}) become sine MLPs. Some are run on the points, which stay in
    the files.
    """
    options = {"lists": lists or None, "root": root, "teacher": teacher, "table": table, "types": types}
    making.write_found("netspace-lists", source, options, folder, out)


@click.command(
    "model-j",
    epilog=examples(
        "prepkit zoo import model-j model-j my-zoo",
        "prepkit zoo import model-j hub-cache my-zoo --table test.parquet --keep-bn",
    ),
)
@source_and_folder
@click.option(
    "--table", "tables", multiple=True, metavar="FILE", help="Table of the data set, also in Parquet. Repeatable."
)
@making_options
@network_options
@keep_bn_option
@json_option
def model_j(
    source: Path,
    folder: Path,
    tables: tuple[str, ...],
    making: Making,
    network: NetworkOptions,
    keep_bn: bool,
    out: Output,
) -> None:
    """Import safetensors folders of the Hub (Model-J).

    \b
    SRC is the folder that holds, perhaps in folders train, val, test, ...
      model_idx_0007/pytorch_lora_weights.safetensors            LoRA adapters of diffusers
      models--acme--vit-1/snapshots/COMMIT/model.safetensors     the cache of the Hub, as Model-J's script fills it
      acme__vit-1/model.safetensors                              plain folders, also with an index and its parts

    Texts in the headers become columns, typed over all models; lists such as dataset_chosen_targets are read as
    literals, never run. So do numbers and texts of config.json, as config.NAME. The folder of a split is the split, val
    as validation.

    A row of --table (CSV, JSON, Parquet) names its model by hf_model_path, by hf_model_id, or by model_idx and a column
    `split`, or a table's name that begins with the split. Rows and models without a partner are counted.

    In Python, zoo.adapters() gives pairs (A, B), products dW = B A and their canonical form of LoRA adapters. Networks
    with BatchNorm need --arch or --keep-bn.
    """
    options = {"table": tables, "key": network.key, "prefix": network.prefix}
    packing = packing_of(network, keep_bn)
    making.write_found("model-j", source, options, folder, out, packing)


@click.command(
    "dataset-pt",
    epilog=examples(
        "prepkit zoo import dataset-pt dataset_cifar_small_seed.pt my-zoo",
        "prepkit zoo import dataset-pt dataset_mnist.pt my-zoo --data MNIST --license mit",
    ),
)
@source_and_folder
@click.option(
    "--data", type=click.Path(path_type=Path), metavar="PATH", help="Folder of the images that the networks classify."
)
@click.option(
    "--activation", metavar="NAME", help="Activation of the networks, where no property model::nlin names it."
)
@making_options
@json_option
def dataset_pt(
    source: Path, folder: Path, data: Path | None, activation: str | None, making: Making, out: Output
) -> None:
    """Import a dataset_*.pt of ModelZooDataset.

    SRC is the file, in which trainset, valset and testset are objects with data_in, properties, paths and epochs. The
    sets become the split. Properties become columns, test_acc as accuracy, and their number is compared with that of
    the networks. Ids are run/epoch. Nothing of the file is imported or run.

    Networks are rebuilt from their tensors and model::nlin as by `prepkit zoo import ray-tree`. With --data (test/CLASS
    and train/CLASS) some are run, which decides how inputs were normalised; without it, the names of folders decide,
    and a note says so. `prepkit zoo verify DST --rerun N --data PATH` proves it.

    Tensors are mapped from the file. A dataset.pt that holds images, such as WeightCLIP's, and the token files of SANE
    are no zoos, and are refused by name.
    """
    from prepkit.zoo.importers.kinds import found_by

    size = source.stat().st_size if source.is_file() else 0
    with out.bar("reading", "B") as bar:
        bar.begin(size)  # without a text, which would be printed before a refusal
        models = found_by("dataset-pt", source, {"data": data, "activation": activation})
        bar.advance(size)
    making.write(folder, models, {}, out, command="zoo import dataset-pt")


COMMANDS = (dataset_pt, model_j, netspace_lists)
