"""LoRA adapters as PEFT saves them: folders with adapter_config.json and adapter_model.safetensors.

    prepkit zoo import peft adapters zoo --pattern "{task}/seed_{seed:int}"

All adapters below a folder are found, also those of a trainer's checkpoints. The zoo keeps the tensors as they are and
the text of each config, so `zoo.adapters()` gives pairs, products and the files again (`prepkit.zoo.read.adapters`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from prepkit.checkpoint.load import load_checkpoint, sha256_of
from prepkit.errors import ZooError, counted, listed
from prepkit.prep.slot import natural_key
from prepkit.zoo.format.lora import ADAPTER_CONFIG, CONFIG, NOT_RUN, WEIGHTS, LoraConfig, pairs_in
from prepkit.zoo.format.sources import SOURCE_SHA256
from prepkit.zoo.importers._folders import walked
from prepkit.zoo.importers._pattern import PathPattern
from prepkit.zoo.importers._strict import STRICT, StrictSource, check_splits
from prepkit.zoo.importers.tree import Paths, Tables, TreeSource, Types, check_folder, in_folder, listed_tables
from prepkit.zoo.write.adding import Model, Source, Told
from prepkit.zoo.write.csv_columns import ModelRows, rows_of_tables
from prepkit.zoo.write.model_files import FileSource, LocalModel, check_columns

OLD_WEIGHTS = "adapter_model.bin"  # what PEFT wrote before safetensors
PARTS = (CONFIG, WEIGHTS, OLD_WEIGHTS)
HOW_TO_RUN = {"unverifiable": NOT_RUN}
RECORD = {"adapters": "LoRA adapters of PEFT: dW = s B A"}


def found(
    folder: Path,
    *,
    pattern: str | None = None,
    files: Paths | None = None,
    table: Tables = None,
    on: Mapping[str, str] | None = None,
    types: Types | None = None,
    splits: str | None = None,
) -> Source:
    """Find the adapters in a folder.

    pattern:   path of an adapter's folder below the folder, such as "{task}/seed_{seed:int}"
    files:     the folders of the adapters, from the folder or the current one; all that there are if missing
    table, on: as the importer of trees takes them; the column `file` names the folder of an adapter
    types:     types of the columns of text tables, as in `create_zoo`
    splits:    "strict", which leaves equal adapters out and keeps those of a run together; see `_strict`
    raises ZooError if there is no adapter, or none that fits the pattern
    """
    check_splits(splits)
    check_folder(folder)
    source = _found(folder, pattern, files, table, on, types)
    return StrictSource(source) if splits == STRICT else source


def _found(
    folder: Path,
    pattern: str | None,
    files: Paths | None,
    table: Tables,
    on: Mapping[str, str] | None,
    types: Types | None,
) -> Source:
    folders = _adapters_in(folder) if files is None else list(dict.fromkeys(map(_folder_of, in_folder(folder, files))))
    tables = listed_tables(table)
    if pattern is not None:
        return _with_fields(folder, folders, pattern, tables, on or {}, types or {})
    if on:
        raise ZooError('on= goes with a pattern=, such as "{task}/seed_{seed:int}".')
    ids = [_id_of(adapter, folder) for adapter in folders]
    rows = rows_of_tables(folders, [Path(name) for name in tables], types, ids)
    check_columns(rows.rows, listed(tables))
    if any(ADAPTER_CONFIG in row.columns for row in rows.rows):
        raise ZooError(
            f"{listed(tables)}: the column '{ADAPTER_CONFIG}' is filled from the adapters themselves; rename it."
        )
    return _AdaptersByPath(rows)


class _AdaptersByPath(FileSource):
    """Adapters that are called by their paths; a row of a table names the folder of one."""

    record = RECORD
    how_to_run = HOW_TO_RUN

    def told(self, index: int) -> Told:
        """Return what a model's row says, and its config."""
        told = super().told(index)
        return replace(told, columns={**told.columns, ADAPTER_CONFIG: _text_of(Path(str(self.rows[index].model)))})

    def __init__(self, rows: ModelRows) -> None:
        super().__init__(rows, lambda path: nullcontext(LocalModel(Path(str(path)), str(path))))

    def read_file(self, file: Path, place: str) -> tuple[Model, tuple[str, ...]]:
        """Read the adapter in a folder."""
        return read_adapter(file), ()

    def sha256_of_file(self, file: Path) -> str | None:
        """Return the sha256 of the weights in a folder."""
        return sha256_of(_weights_in(file))


class _AdaptersByFields(TreeSource):
    """Adapters whose paths fit a pattern."""

    record = RECORD
    how_to_run = HOW_TO_RUN

    def __init__(
        self,
        configs: Sequence[Path],
        pattern: PathPattern,
        tables: Sequence[str],
        on: Mapping[str, str],
        types: Types,
        left_out: Sequence[str],
    ) -> None:
        super().__init__(configs, pattern.text, tables, on, types, None, None)
        self._left_out = left_out

    def notes(self) -> Sequence[str]:
        """Return sentences on adapters, tables and rows that were left out."""
        return *self._left_out, *super().notes()

    def told(self, index: int) -> Told:
        """Return a model's fields, its rows in the tables, and its config."""
        told = super().told(index)
        return replace(told, columns={**told.columns, ADAPTER_CONFIG: _text_of(Path(self.files[index]).parent)})

    def read_file(self, file: Path) -> tuple[Model, tuple[str, ...]]:
        """Read the adapter of a config."""
        return read_adapter(file.parent), ()

    def sha256(self, index: int) -> str | None:
        """Return the sha256 of the weights beside a config."""
        return sha256_of(_weights_in(Path(self.files[index]).parent))


def read_adapter(folder: Path) -> Model:
    """Read the adapter in a folder, without running anything.

    raises ZooError if a part is missing, or the adapter is not one of pairs (A, B) alone; CheckpointError
    """
    config_file = folder / CONFIG
    weights = _weights_in(folder)
    for file, other in ((config_file, weights), (weights, config_file)):
        if not file.is_file():
            raise ZooError(f"'{file}' is missing, though '{other.name}' is there. Fetch it, or leave the folder out.")
    text = _text_of(folder)
    config = LoraConfig.parse(text, str(config_file))
    tensors = load_checkpoint(weights, prefix="")
    whole = [name for name, tensor in tensors.items() if not tensor.is_floating_point()]
    if whole:
        raise ZooError(f"{weights}: {listed(whole)}: a zoo has no place for whole numbers; leave this adapter out.")
    pairs_in({name: tuple(tensor.shape) for name, tensor in tensors.items()}, config, str(weights))
    return Model(
        tensors,
        f"'{weights}'",
        columns={SOURCE_SHA256: sha256_of(weights), ADAPTER_CONFIG: text},
        said={
            "base_model": config.base_model,
            "task_type": config.task_type,
            "r": config.values["r"],
            "lora_alpha": float(config.values["lora_alpha"]),
            "use_rslora": bool(config.values.get("use_rslora")),
        },
    )


def _adapters_in(folder: Path) -> list[Path]:
    """Return all folders, this one or below it, that hold any part of an adapter, in natural order.

    raises ZooError if there is none, or a folder cannot be read
    """
    found: list[Path] = []
    for place, folders, names in walked(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if any(part in names for part in PARTS):
            found.append(place)
    if not found:
        raise ZooError(f"'{folder}' holds no adapter: no folder in it has an {CONFIG} or an {WEIGHTS}.")
    return sorted(found, key=lambda path: natural_key(path.as_posix()))


def _text_of(folder: Path) -> str:
    """Return the text of an adapter's config.

    raises ZooError if it cannot be read
    """
    file = folder / CONFIG
    try:
        return file.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ZooError(f"{file}: cannot be read: {reason}.") from None


def _weights_in(folder: Path) -> Path:
    weights = folder / WEIGHTS
    return folder / OLD_WEIGHTS if not weights.is_file() and (folder / OLD_WEIGHTS).is_file() else weights


def _folder_of(path: Path) -> Path:
    return path.parent if path.name in PARTS else path


def _id_of(adapter: Path, folder: Path) -> str:
    """Return the path below the folder, which stays the same when others join it; the folder's own name for itself."""
    if adapter.is_relative_to(folder) and adapter != folder:
        return adapter.relative_to(folder).as_posix()
    return adapter.resolve().name if adapter == folder else adapter.as_posix()


def _with_fields(
    folder: Path, folders: Sequence[Path], pattern: str, tables: Sequence[str], on: Mapping[str, str], types: Types
) -> Source:
    """Return the adapters whose whole paths below the folder fit a pattern; the last parts of other paths may."""
    whole = PathPattern.parse(f"{pattern.strip('/')}/{CONFIG}")
    fitting: list[Path] = []
    others: list[str] = []
    for path in folders:
        is_below = path.is_relative_to(folder)
        fit = whole.fit(((path.relative_to(folder) if is_below else path) / CONFIG).as_posix())
        if fit is not None and not (is_below and fit.root):
            fitting.append(path / CONFIG)
        else:
            others.append(str(path))
    if not fitting:
        fits = "does not fit" if len(folders) == 1 else "do not fit"
        raise ZooError(
            f"{counted(len(folders), 'adapter')} in '{folder}' {fits} the pattern '{pattern}': {listed(others, 3)}."
        )
    left_out = [f"{counted(len(others), 'adapter')} left out, which the pattern does not fit: {listed(others)}."]
    return _AdaptersByFields(fitting, whole, tables, on, types, left_out if others else [])
