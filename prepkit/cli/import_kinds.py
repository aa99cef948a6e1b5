"""`prepkit zoo import KIND`: a command for each layout of a zoo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from prepkit.cli.examples import examples
from prepkit.cli.importing import Making, making_options, packing_of, source_and_folder, splits_option, tree_options
from prepkit.cli.network_options import NetworkOptions, keep_bn_option, network_options
from prepkit.cli.output import Output, json_option


@click.command(
    epilog=examples(
        'prepkit zoo import tree runs my-zoo --pattern "{run}/{epoch:int}.pt" --table scores.csv --splits strict',
        'prepkit zoo import tree runs my-zoo --pattern "{run}/checkpoint_{epoch:int}/checkpoints" \\\n'
        '      --table "{run}/result.json" --on epoch=training_iteration --table "{run}/params.json"',
        "find runs -name '*.pt' | prepkit zoo import tree runs my-zoo --from - --pattern '{run}/{epoch:int}.pt'",
    )
)
@source_and_folder
@tree_options
@splits_option("strict")
@making_options
@network_options
@keep_bn_option
@json_option
def tree(
    source: Path,
    folder: Path,
    files: dict[str, Any],
    splits: str | None,
    making: Making,
    network: NetworkOptions,
    keep_bn: bool,
    out: Output,
) -> None:
    """Import any tree of files, by a pattern of paths.

    {run} is any text in one part of a path, {epoch:int} a whole number, {lr:float} a number, and * what is no column.
    Fields become columns, and the id is made of them: run_3/50. A field {split} is the split. With --from, the models
    are those of the list, whose last parts fit the pattern. Without --pattern all files of models in SRC are taken, and
    a table names them by path, as in `prepkit zoo create`.

    A table belongs to all models, or, if its name has fields, to those of one run, below SRC. Its rows are found by the
    columns that are called as the fields are (--on epoch=step for another name), never by their place, or by a column
    `file` with paths. In JSONL and in tables of runs the last row of a key wins. A JSON object of a run is one row, and
    objects inside it become columns with dotted names. Notes count files without a row and rows without a file.

    What a file says beside its tensors becomes columns too, with dotted names; a note names what cannot be one.

    --splits strict keeps the first of models with equal weights, and all models that share the column `run` in one
    split: half of the runs for testing, four tenths for training, one tenth for validation. A split that paths or
    tables tell is kept as the column split.original.
    """
    options = {**files, "key": network.key, "prefix": network.prefix, "splits": splits}
    packing = packing_of(network, keep_bn)
    making.write_found("tree", source, options, folder, out, packing)


@click.command(
    epilog=examples(
        "prepkit zoo import peft adapters my-zoo",
        'prepkit zoo import peft adapters my-zoo --pattern "{task}/seed_{seed:int}" --table scores.csv',
    )
)
@source_and_folder
@tree_options
@splits_option("strict")
@making_options
@json_option
def peft(
    source: Path,
    folder: Path,
    files: dict[str, Any],
    splits: str | None,
    making: Making,
    out: Output,
) -> None:
    """Import LoRA adapters that PEFT saved.

    An adapter is a folder with adapter_config.json and adapter_model.safetensors; all in SRC are taken, and called by
    their paths. Models that --pattern, --from and the column `file` of a table name are such folders. Tables are joined
    as in `prepkit zoo import tree`.

    Tensors are kept as they are, beside modules that were saved whole. The columns base_model, task_type, r,
    lora_alpha and use_rslora come from each config, and adapter_config is its text. In Python, zoo.adapters() gives
    pairs (A, B) by module, products dW = s B A, their canonical form, and the files again.

    Adapters that are more than such pairs (DoRA, biases), or whose ranks are not those of the config, are refused.
    Adapters of several dtypes need --dtype float32. --splits strict is that of `prepkit zoo import tree`.
    """
    making.write_found("peft", source, {**files, "splits": splits}, folder, out)


@click.command(
    epilog=examples(
        "prepkit zoo import siren mnist-inrs my-zoo --data mnist_png",
        "prepkit zoo import siren mnist-inrs my-zoo --data mnist_png --splits paper --split-file mnist_splits.json",
    )
)
@source_and_folder
@click.option("--data", type=click.Path(path_type=Path), metavar="PATH", help="Folder of the pictures.")
@click.option("--picture", metavar="PATH", help="Path of each picture below --data, such as {label}/{index}.png.")
@click.option("--convention", metavar="NAME", help="dws, nfn or implicit-zoo. [default: what running decides]")
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
def siren(
    source: Path,
    folder: Path,
    data: Path | None,
    picture: str | None,
    convention: str | None,
    split_file: Path | None,
    files: dict[str, Any],
    splits: str | None,
    making: Making,
    out: Output,
) -> None:
    """Import SIRENs that draw pictures (DWSNets, nfn).

    \b
    SRC is the folder that holds
      mnist_png_SPLIT_LABEL_INDEX/checkpoints/model_final.pth    DWSNets, MNIST
      SPLIT/model_INDEX.pth                                      DWSNets, Fashion-MNIST
      PREFIX_LABELs/netINDEX.pth                                 nfn
      ckpts/LABEL/INDEX_SEED.ckpt and 0_50000.json               Implicit-Zoo
    or models by --pattern, --from and --table as in `prepkit zoo import tree`.

    The three differ in what is added to the output, in which coordinate comes first and in how pixels were normalised.
    With --data, running some models on their pictures decides, and each model whose PSNR nothing stores is measured.
    Pictures are SPLIT/LABEL/INDEX.png, SPLIT/INDEX.png, INDEX.png and LABEL/INDEX.png below it, or as --picture says,
    with the digits of the model's path. Without --data the names of tensors are taken, and a note says so.

    The zoo notes how its networks are run; `prepkit zoo verify DST --rerun N --data PATH` proves it.

    \b
    --splits paper is the split of the papers:
      nfn      up to picture 44,999 for training, up to 49,999 for validation, the rest for testing; so the last
               10,000 training pictures of MNIST and Fashion-MNIST are for testing too
      DWSNets  as in FILE of --split-file, such as mnist_splits.json of neural-graphs or splits.json in SRC:
               {"train": {"path": [...], "label": [...]}, "val": ..., "test": ...}. DWSNets drew the 5,000 models of
               MNIST for validation without a seed; without FILE a twelfth of the training models is taken instead,
               those whose ids have the least sha256
    --splits strict keeps the first of models with equal weights, and all models of a picture in one split, half for
    testing, four tenths for training, one tenth for validation.
    """
    options = {**files, "data": data, "picture": picture, "convention": convention}
    options |= {"splits": splits, "split_file": split_file}
    making.write_found("siren", source, options, folder, out)


@click.command(
    "small-cnn-zoo",
    epilog=examples(
        "prepkit zoo import small-cnn-zoo cifar10 my-zoo --step 86",
        "prepkit zoo import small-cnn-zoo cifar10 my-zoo --splits paper --order cifar10_split.csv --activation relu",
    ),
)
@source_and_folder
@click.option("--step", "steps", type=int, multiple=True, help="Checkpoints to take. Repeatable. [default: all]")
@click.option("--activation", metavar="NAME", help="Take only the networks with this one, relu or tanh.")
@splits_option("paper", "strict")
@click.option("--order", type=click.Path(path_type=Path), metavar="FILE", help="CSV file with the order of the rows.")
@making_options
@json_option
def small_cnn_zoo(
    source: Path,
    folder: Path,
    steps: tuple[int, ...],
    activation: str | None,
    splits: str | None,
    order: Path | None,
    making: Making,
    out: Output,
) -> None:
    """Import a Small CNN Zoo (Unterthiner et al.).

    SRC holds weights.npy, metrics.csv.gz and layout.csv. The matrix is read a row at a time. Tensors get PyTorch's
    order of axes and names, `convs.0.weight`; networks are rebuilt, with stride 2, no padding and the activation of
    each row. The table becomes columns, of which modeldir is called run and test_accuracy accuracy; ids are
    run/step.

    `prepkit zoo verify DST --rerun N --data FOLDER` proves it on the images of MNIST, Fashion-MNIST, CIFAR-10 or SVHN,
    in the files that torchvision downloads: channels averaged into one, pixels from -1 to 1.

    --splits paper --order FILE takes the last step and splits it as NFN does, ScaleGMN too with --activation relu: the
    second half of the order is for testing, the first is shuffled by random.Random(0), four fifths for training. FILE
    is the CSV file of a permutation that NFN publishes. The stray 0 at its start counts as a row, as it does there; a
    note says what it changes. --splits strict keeps the first of rows with equal weights, and all steps of a run in one
    split: half for testing, four tenths for training, one tenth for validation.
    """
    from prepkit.zoo.importers.kinds import found_by

    options = {"steps": steps or None, "activation": activation, "splits": splits, "order": order}
    models = found_by("small-cnn-zoo", source, options)
    making.write(folder, models, {}, out, command="zoo import small-cnn-zoo")


COMMANDS = (tree, peft, siren, small_cnn_zoo)
