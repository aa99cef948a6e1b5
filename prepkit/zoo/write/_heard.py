"""What is to be told of the models of an import at its end, also of those that were added before an interruption.

While a zoo is written, the remarks on each model that has any stand in a file beside its journal, a line a model.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prepkit.errors import counted, listed
from prepkit.fusion.fold import note_on_costs
from prepkit.support.files import system_errors_as_output


@dataclass
class Remarks:
    """What is remarkable of one model.

    buffers:  names of integer buffers that are left out
    costs:    how far rounding its folded values changes its outputs, by what messages call the model
    unkept:   names in its file of which a table has no values
    unlike:   columns whose value in the file is of another kind than those before
    unlike_of_tables: columns whose value in a table is
    twice:    columns that a table and the file fill, with different values
    renamed:  columns that are called otherwise than in the file
    counts:   what its source counts
    """

    buffers: set[str] = field(default_factory=set)
    costs: dict[str, float] = field(default_factory=dict)
    unkept: list[str] = field(default_factory=list)
    unlike: list[str] = field(default_factory=list)
    unlike_of_tables: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


class Heard:
    """Gathers the remarks on all models.

    file:     where remarks are kept while the zoo is written
    finished: ids of the models that an interrupted import has kept
    raises OutputError
    """

    def __init__(self, file: Path, finished: Collection[str]) -> None:
        self.not_finite: list[str] = []
        self.copies: list[str] = []
        self.digests: set[bytes] = set()  # of the models that were added, if copies are left out
        self.counts: Counter[str] = Counter()
        self._all = Remarks()
        self._of: dict[str, Counter[str]] = {
            name: Counter() for name in ("unkept", "unlike", "unlike_of_tables", "twice")
        }
        self._file = file
        with system_errors_as_output(file):
            file.parent.mkdir(exist_ok=True)
            self._take_back(finished)
            self._output = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def keep(self, id_: str, remarks: Remarks) -> None:
        """Write the remarks on a model to the disk, before it is added.

        raises OutputError
        """
        said = {
            name: sorted(value) if isinstance(value, set) else value for name, value in asdict(remarks).items() if value
        }
        if said:
            with system_errors_as_output(self._file):
                os.write(self._output, json.dumps([id_, said]).encode() + b"\n")

    def add(self, remarks: Remarks) -> None:
        """Count the remarks on a model that was added."""
        self._all.buffers |= remarks.buffers
        self._all.costs |= remarks.costs
        self._all.renamed |= remarks.renamed
        self.counts.update(remarks.counts)
        for name, counts in self._of.items():
            counts.update(getattr(remarks, name))

    def close(self) -> None:
        """Close the file."""
        os.close(self._output)

    def notes(self) -> Iterator[str]:
        """Return a sentence for each kind of thing that was left out or is unusual."""
        if self._all.buffers:
            yield f"Integer buffers are left out, for which a zoo has no place: {listed(sorted(self._all.buffers))}."
        if self.not_finite:
            models = counted(len(self.not_finite), "model")
            hold = "holds" if len(self.not_finite) == 1 else "hold"
            yield f"{models} that {hold} NaN or infinity left out: {listed(self.not_finite)}."
        if self.copies:
            models = counted(len(self.copies), "model")
            yield f"{models} with the weights of an earlier one left out: {listed(self.copies)}."
        if self._all.renamed:
            pairs = listed(f"{name} is {column}" for name, column in self._all.renamed.items())
            yield f"What files say under names of the zoo's own columns has other names: {pairs}."
        for name, sentence in SENTENCES.items():
            if counts := self._of[name]:
                places = listed(f"{place} ({counted(count, 'model')})" for place, count in counts.items())
                yield f"{sentence}: {places}."
        yield from note_on_costs(self._all.costs, "model")

    def _take_back(self, finished: Collection[str]) -> None:
        """Count what the file says of models that were kept: the last line of each, as it may have been read again."""
        if not self._file.exists():
            return
        last: dict[str, Mapping[str, Any]] = {}
        content = self._file.read_bytes()
        for line in content.splitlines():
            try:
                id_, said = json.loads(line)
            except ValueError:  # a kill cut it short
                continue
            last[id_] = said
        for id_, said in last.items():
            if id_ in finished:
                self.add(Remarks(**{**said, "buffers": set(said.get("buffers", ()))}))
        if content and not content.endswith(b"\n"):
            self._file.write_bytes(content[: content.rfind(b"\n") + 1])


SENTENCES = {
    "unkept": "Left in the files, since a table has no place for it",
    "unlike": "Values of another kind than those before, left in the files",
    "unlike_of_tables": "Values of another kind than those before, left in the tables",
    "twice": "The table, not the file, is kept where they differ",
}
