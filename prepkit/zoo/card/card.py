"""The dataset card of a zoo: README.md with the Hub's YAML header, and card.png.

All of it comes from the manifest, the table and a few PReps, without times, so the same zoo gives the same bytes.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepkit.errors import counted
from prepkit.licence import licence_of_card
from prepkit.support.files import replacing
from prepkit.support.lock import changing
from prepkit.support.markdown import fenced, markdown_table, one_line, write_readme
from prepkit.support.text import readable_bytes
from prepkit.zoo.card._starts import sentences_on_starts
from prepkit.zoo.card.viewer import ViewerSplit, only_split
from prepkit.zoo.format.counts import ARCHITECTURES_SHOWN, counts_of, num_bytes_of
from prepkit.zoo.format.drawn_split import EARLIER_SPLIT, drawn_split
from prepkit.zoo.format.lora import ADAPTER_CONFIG
from prepkit.zoo.format.manifest import Manifest, read_manifest
from prepkit.zoo.format.sources import PREFIX, SOURCE, SOURCE_SHA256, VERSIONS
from prepkit.zoo.format.split_rule import split_rule

if TYPE_CHECKING:
    from prepkit.zoo.read.zoo import Zoo

README = "README.md"
PICTURE = "card.png"
MARK = "<!-- Written by prepkit; remove this line to keep your own changes. -->"
TAGS = ("prepkit", "weight-space-learning", "model-zoo", "pytorch")
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
OWN_MEANINGS = {
    "id": "unique name of the instance",
    "architecture": "name of its architecture",
    "class_id": "number of its architecture",
    "split": "its split, such as train or test",
    "shard": "index of its file in the `shards` of zoo.json",
    "row": "its row in that file",
}
ONE_FILE = (
    "The table is one file, of which `datasets` makes one split, `train`; the column `split` tells the splits. "
    "`prepkit push` writes each split as a file of its own for the Hub's viewer."
)
COPIES = (
    "The Hub's viewer and `datasets.load_dataset` read each split from a file of its own in the folder `viewer`, which "
    "holds copies of the table's rows."
)
EARLIER = "its split before `zoo split` replaced it"
MEANINGS_OF_TRAINING = {  # `zoo train` writes these columns; in other zoos they are the user's
    "run": "number of its training run; all weights that are kept of a run share it",
    "item": "number of its own data set",
    "seed": "seed of data order, augmentation and, where `start` is own, of its first weights",
    "start": "weights its training began with: own is a random draw of its own, other names are shared",
    "epoch": "epoch after which its weights were taken",
    "epochs": "number of epochs of the whole training",
    "schedule": "schedule of the learning rate",
    "precision": "precision of the forward pass in training",
    "train_accuracy": "accuracy on all training data, without augmentation",
    "train_loss": "loss on all training data, without augmentation",
    "validation_accuracy": "accuracy on the validation data",
    "validation_loss": "loss on the validation data",
    "accuracy": "accuracy on the test data",
    "loss": "loss on the test data",
}
MEANINGS_OF_SOURCES = {  # `zoo create` fills these columns
    SOURCE: "address on the Hub of the checkpoint, with its commit",
    SOURCE_SHA256: "sha256 of the checkpoint's file",
    PREFIX: "text before every name in the checkpoint; `zoo export` puts it back",
    VERSIONS: "versions of modules in the checkpoint that are not 1; `zoo export` notes them",
}
MEANINGS_OF_ADAPTERS = {  # `zoo import peft` fills these columns
    ADAPTER_CONFIG: "text of the adapter's adapter_config.json",
    "base_model": "model that the adapter was trained on",
    "task_type": "kind of task, such as CAUSAL_LM",
    "r": "rank of all modules for which the config has no other",
    "lora_alpha": "alpha of the scale, alpha / r, of all modules for which the config has no other",
    "use_rslora": "whether the scale is alpha / sqrt(r)",
}
MEANINGS = {
    "zoo train": MEANINGS_OF_TRAINING,
    "zoo create": MEANINGS_OF_SOURCES,
    "zoo import dataset-pt": MEANINGS_OF_SOURCES
    | {
        "run": "folder of the run that it is a checkpoint of",
        "epoch": "epoch after which its weights were taken",
        "accuracy": "accuracy on the test data, which the file calls test_acc",
    },
    "zoo import gpt-lmdb": {
        "run": "name of its training run; all checkpoints of a run share it",
        "epoch": "epoch in which its weights were taken",
        "iteration": "iteration after which its weights were taken, counted in the epoch if there is one",
        "accuracy": "accuracy on the test data, 1 - avg_test_err / 100",
    },
    "zoo import inr2vec": MEANINGS_OF_SOURCES
    | {
        "index": "number of its file",
        "label": "class of its shape, class_id in the file",
        "pair": "what the two instances of a file share",
        "part": "which of the two it represents, the incomplete or the complete shape",
    },
    "zoo import nino": {
        "run": "number of its trajectory; all states of a run share it",
        "state": "number of its state in the trajectory",
        "accuracy": "accuracy on the test data, of 0 to 1",
    },
    "zoo import model-j": MEANINGS_OF_SOURCES
    | {"model_idx": "number of its folder", "hf_model_id": "its repository on the Hub"},
    "zoo import netspace-lists": MEANINGS_OF_SOURCES | {"dataset": "images that the network classifies"},
    "zoo import peft": MEANINGS_OF_SOURCES | MEANINGS_OF_ADAPTERS,
    "zoo import small-transformer-zoo": MEANINGS_OF_SOURCES
    | {
        "run": "name of its training run; all checkpoints of a run share it",
        "checkpoint": "which checkpoint of the run it is, an epoch or the best one, as its file's name says",
        "epoch": "number of the epoch, if the checkpoint is one",
        "accuracy": "accuracy on the test data, as the table, or else the file's name, has it",
    },
    "zoo import cnn-wild-park": MEANINGS_OF_SOURCES
    | {
        "run": "folder of its training run; all checkpoints of a run share it",
        "checkpoint": "number of its checkpoint's folder",
        "iteration": "number of epochs that the training counted",
        "accuracy": "accuracy on the test data, as the training stored it",
    },
}


@dataclass(frozen=True)
class Card:
    """The files that were written: `readme` is None if the user has an own README.md, `picture` without matplotlib."""

    readme: Path | None
    picture: Path | None


def write_card(path: str | os.PathLike[str]) -> Card:
    """Write README.md and, if matplotlib is there, card.png into a finished zoo, over older ones.

    A README.md without prepkit's mark is the user's own and left alone.
    raises ZooError if the folder is no zoo, ZooLocked if another process changes it, OutputError
    """
    root = Path(path)
    read_manifest(root)  # before a lock is put into the folder
    with changing(root):
        return replace_card(root)


def replace_card(root: Path) -> Card:
    """Write the card as `write_card` does, for a caller that holds the zoo's lock."""
    from prepkit.zoo.read.zoo import local_zoo

    zoo = local_zoo(root)
    picture = _picture(zoo, root)
    readme = root / README
    written = write_readme(readme, card_text(zoo, picture is not None), MARK)
    return Card(readme if written else None, picture)


def card_text(zoo: Zoo, has_picture: bool, repo: str | None = None, viewer: Sequence[ViewerSplit] = ()) -> str:
    """Write the text of README.md.

    repo:   where the zoo is on the Hub, None for a local folder
    viewer: splits that have files of their own there
    """
    manifest = zoo.manifest
    viewer = viewer or only_split(manifest)
    header = [line for lines in card_header(manifest, viewer).values() for line in lines]
    sections = [
        ["---", *header, "---", MARK, "", f"# {one_line(manifest.name)}", "", _summary(manifest)],
        [f"![accuracy by architecture, and PReps]({PICTURE})"] if has_picture else [],
        ["## How to load it", "", *_loading(manifest, repo)],
        ["## Architectures", "", *_architectures(manifest)],
        ["## Splits", "", *_splits(manifest, viewer)],
        ["## Task and preprocessing", "", *_task(manifest)],
        ["## Function", "", *_function(manifest)] if manifest.function is not None else [],
        ["## Training protocol and initialisation", "", *_provenance(manifest)],
        ["## Columns", "", *_columns(zoo)],
        ["## Licence", "", *_licence(manifest)],
    ]
    return "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def card_header(manifest: Manifest, viewer: Sequence[ViewerSplit]) -> dict[str, list[str]]:
    """Return the lines of the YAML that the Hub reads, by key; text is quoted as JSON, which YAML reads too.

    viewer: splits that have files; if there are none, the zoo's table is one
    """
    size = next((name for limit, name in SIZES if manifest.table.rows < limit), "10M<n<100M")
    licence, name = licence_of_card(manifest.license)
    header = {
        "license": [f"license: {_quoted(licence)}"],
        "license_name": [] if name is None else [f"license_name: {_quoted(name)}"],
        "pretty_name": [f"pretty_name: {_quoted(manifest.name)}"],
        "tags": ["tags:", *(f"- {tag}" for tag in TAGS)],
        "size_categories": ["size_categories:", f"- {size}"],
        "configs": ["configs:", "- config_name: default", *_data_files(manifest, viewer)],
    }
    return {key: lines for key, lines in header.items() if lines}


def _data_files(manifest: Manifest, viewer: Sequence[ViewerSplit]) -> list[str]:
    if not viewer:
        return [f"  data_files: {_quoted(manifest.table.path)}"]
    pairs = ((f"  - split: {_quoted(split.name)}", f"    path: {_quoted(split.path)}") for split in viewer)
    return ["  data_files:", *(line for pair in pairs for line in pair)]


def _summary(manifest: Manifest) -> str:
    counts = [count for count in counts_of(manifest).values() if count]
    shards = counted(len(manifest.shards), f"{manifest.shard_format} shard")
    return (
        f"{counted(manifest.table.rows, 'trained network')} of {counted(len(counts), 'architecture')}, each as one "
        f"matrix (a PRep) that fits {manifest.shape} {manifest.dtype} values; "
        f"{readable_bytes(num_bytes_of(manifest))} in {shards}. Made with {one_line(manifest.created_by)}."
    )


def _loading(manifest: Manifest, repo: str | None) -> list[str]:
    names = [name for name in ("train", *manifest.splits) if name in manifest.splits and _plain(name)]
    part = f'.split("{names[0]}")' if names else ""
    shape = f"[N, {manifest.height}, {manifest.width}]"
    where = "path/to/this/folder" if repo is None else f"hf://{repo}"
    whole = [] if repo is None else ["", f"`prepkit pull {repo}` fetches all of it, and compares each file's sha256."]
    return [
        "```python",
        "import prepkit",
        f'zoo = prepkit.open_zoo("{where}"){part}',
        f"preps, metadata = zoo.preps(), zoo.table    # {shape}, and a row each",
        "```",
        *whole,
    ]


def _architectures(manifest: Manifest) -> list[str]:
    counts = counts_of(manifest)
    rows = [
        (
            "teacher" if stored.class_id is None else stored.class_id,
            stored.name,
            counts[stored.name],
            stored.layout.num_parameters,
            f"{stored.height} x {manifest.width}",
            "x".join(map(str, stored.input_shape or ())) or "unknown",
        )
        for stored in manifest.architectures[:ARCHITECTURES_SHOWN]
    ]
    more = len(manifest.architectures) - len(rows)
    lines = markdown_table(("ClassId", "architecture", "instances", "packed parameters", "PRep", "input"), rows)
    return [*lines, "", f"And {more:,} more, which `zoo.json` describes."] if more else lines


def _splits(manifest: Manifest, viewer: Sequence[ViewerSplit]) -> list[str]:
    if not manifest.splits:
        return ["None."]
    rest = manifest.table.rows - sum(manifest.splits.values())
    rows = [*manifest.splits.items(), *([("(none)", rest)] if rest else [])]
    return [*markdown_table(("split", "instances"), rows), *_drawing(manifest), *_about_files(viewer)]


def _about_files(viewer: Sequence[ViewerSplit]) -> list[str]:
    """Tell which files hold the splits, and which splits have other names there."""
    if not viewer:
        return ["", ONE_FILE]
    renamed = [f"`{split.name}`: {split.split or 'no split'}" for split in viewer if split.name != split.split]
    names = [f"Splits have other names there: {one_line('; '.join(renamed))}."] if renamed else []
    copies = [COPIES] if any(split.content for split in viewer) else []
    return ["", " ".join([*copies, *names])] if copies or names else []


def _drawing(manifest: Manifest) -> list[str]:
    """Tell how `zoo split` drew the split, or which split it is by its name."""
    draw = drawn_split(manifest)
    if draw is None:
        rule = split_rule(manifest)
        return [] if rule is None else ["", one_line(f"The splits are: {rule}.")]
    shares = ", ".join(f"{name} {share}" for name, share in draw["shares"].items())
    groups = f" Instances of the same `{draw['group']}` are in the same split." if draw["group"] else ""
    kept = f" The column `{draw['kept']}` holds the split that it replaced." if draw["kept"] else ""
    return ["", one_line(f"Drawn by `prepkit zoo split` with seed {draw['seed']} and shares {shares}.{groups}{kept}")]


def _task(manifest: Manifest) -> list[str]:
    lines = ["Not recorded."] if manifest.task is None else _facts(manifest.task)
    if manifest.preprocessing is not None:
        lines += ["", f"`zoo.loader(normalise=True)` normalises PReps: {manifest.preprocessing}."]
    return lines


def _function(manifest: Manifest) -> list[str]:
    """Tell how the instances of an imported zoo are run, and whether running them proved it."""
    function = manifest.function
    if function is None:
        return []
    lines = [f"`function: {function.status}`"]
    if function.how.unverifiable is not None:
        lines[0] += f": {function.how.unverifiable}."
    elif function.verified is None:
        lines[0] += ": none was run yet; `prepkit zoo verify DIR --rerun N --data FOLDER` does it."
    else:
        lines[0] += f": running instances found what is stored; {function.verified}."
    if function.how_to_run:
        lines += ["", "How to run them:", "", *_facts(function.how_to_run)]
    return lines


def _provenance(manifest: Manifest) -> list[str]:
    if not manifest.provenance:
        return ["Not recorded."]
    sentences = sentences_on_starts(manifest.provenance)
    return [*sentences, *([""] if sentences else []), *_facts(manifest.provenance)]


def _facts(record: Mapping[str, Any]) -> list[str]:
    """List the keys of a record with their values: text of several lines as a block, all else as JSON."""
    lines = []
    for key, value in sorted(record.items()):
        if isinstance(value, str) and "\n" in value:
            lines += [f"- {one_line(key)}:", "", *fenced(value)]
        else:
            text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
            lines.append(f"- {one_line(key)}: `{one_line(text).replace('`', chr(39))}`")
    return lines


def _columns(zoo: Zoo) -> list[str]:
    command = str((zoo.manifest.provenance or {}).get("command"))
    like = "zoo create" if command.startswith("zoo import ") and command not in MEANINGS else command
    earlier = [name for name in zoo.table.column_names if name.startswith(EARLIER_SPLIT)]
    meanings = OWN_MEANINGS | dict.fromkeys(earlier, EARLIER) | MEANINGS.get(like, {})
    rows = [
        (
            field.name,
            str(field.type),
            zoo.table[field.name].null_count,
            meanings.get(field.name, ""),
        )
        for field in zoo.table.schema
    ]
    return markdown_table(("column", "type", "missing", "meaning"), rows)


def _licence(manifest: Manifest) -> list[str]:
    """Name the licence; of networks that others trained, tell whom to ask where none was given."""
    if manifest.license:
        return [one_line(manifest.license)]
    command = str((manifest.provenance or {}).get("command"))
    if not command.startswith("zoo import "):
        return ["none was given."]
    return [
        f"none was given. The networks are those of others, whose zoo `prepkit {one_line(command)}` read: ask its "
        "makers under which licence they gave it. `prepkit push --license` writes it into the zoo."
    ]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if not _plain(text) else text


def _plain(text: str) -> bool:
    return text.isascii() and text[:1].isalpha() and all(c.isalnum() or c in "-._" for c in text) and not _is_word(text)


def _is_word(text: str) -> bool:
    """Return whether YAML would read a word as something else than text."""
    return text.lower() in ("null", "true", "false", "yes", "no", "on", "off", "y", "n")


def _picture(zoo: Zoo, root: Path) -> Path | None:
    content = picture_of(zoo)
    if content is None:
        return None
    with replacing(root / PICTURE, overwrite=True) as temporary:
        temporary.write_bytes(content)
    return root / PICTURE


def picture_of(zoo: Zoo) -> bytes | None:
    """Draw card.png, and return its bytes; None for an empty zoo or without matplotlib."""
    from prepkit.figures import PlotsMissing
    from prepkit.zoo.card._picture import card_figure

    if not len(zoo):
        return None
    try:
        figure = card_figure(zoo)
    except PlotsMissing:
        return None
    content = io.BytesIO()
    # Without the name and version of the software the same picture has the same bytes.
    figure.savefig(content, format="png", dpi=120, metadata={"Software": None})
    return content.getvalue()
