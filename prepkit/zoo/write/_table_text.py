"""Read the cells of a CSV file, whatever program wrote it: its encoding and its delimiter are found out.

UTF-8 and UTF-16, with or without a byte order mark, and cp1252, in which older programs on Windows write. The delimiter
is a comma, a semicolon, a tab or a bar: the one that makes `file` a cell of the first line, or the one that Excel's
first line `sep=;` names.
"""

from __future__ import annotations

import codecs
import csv
import io
from dataclasses import dataclass
from pathlib import Path

from prepkit.errors import ZooError, counted

FILE = "file"
ROLES = (FILE, "id", "split")  # columns that are not the user's; `File` and `ID` will do
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


@dataclass(frozen=True)
class TableText:
    """The cells of a table, as text.

    header: names of the columns
    lines:  number and cells of all lines but the first
    notes:  sentences on how the file was read, if it is no CSV of commas in UTF-8
    """

    header: list[str]
    lines: list[tuple[int, list[str]]]
    delimiter: str
    notes: tuple[str, ...] = ()


def read_text(path: Path, content: bytes) -> TableText:
    """Read the content of a CSV file.

    raises ZooError naming the line that is wrong
    """
    text, encoding = _decoded(path, content)
    first, _, rest = text.partition("\n")
    skipped, delimiter = 0, _delimiter(first)
    if first.lower().startswith("sep=") and len(first.strip("\r")) == len("sep=") + 1:
        text, skipped, delimiter = rest, 1, first[len("sep=")]
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
        lines = [(reader.line_num + skipped, [cell.strip() for cell in line]) for line in reader if any(line)]
    except csv.Error as error:
        raise ZooError(f"{path}: not a CSV file: {error}.") from None
    if not lines:
        raise ZooError(f"{path}: empty; the first line names the columns, one of them '{FILE}'.")
    header = [_role(name, lines[0][1]) for name in lines[0][1]]
    for number, line in lines[1:]:
        if len(line) != len(header):
            cells, columns = counted(len(line), "cell"), counted(len(header), "column")
            raise ZooError(f"{path}, line {number}: {cells}, but the first line names {columns}.")
    return TableText(header, lines[1:], delimiter, _notes(path, encoding, delimiter))


def _decoded(path: Path, content: bytes) -> tuple[str, str]:
    """Return the text of a file and its encoding."""
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    if encoding == "utf-8" and len(content) > 1 and 0 in content[:2]:  # the first letter of a name is ASCII
        encoding = "utf-16-le" if content[1] == 0 else "utf-16-be"
    candidates = ("utf-8", "cp1252") if encoding == "utf-8" else (encoding,)
    for candidate in candidates:
        try:
            text = content.decode(candidate)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text, candidate
    raise ZooError(f"{path}: not a CSV file in {' or '.join(map(str.upper, candidates))}; save it as CSV in UTF-8.")


def _delimiter(first_line: str) -> str:
    """Return the delimiter that makes `file` a cell of the first line, or else the most cells; a comma if none does."""
    found = [
        (len(cells), delimiter)
        for delimiter in DELIMITERS
        if FILE in (cells := [cell.strip().strip('"').lower() for cell in first_line.split(delimiter)])
    ]
    found = found or [(first_line.count(delimiter), delimiter) for delimiter in DELIMITERS]
    return max(found, key=lambda pair: pair[0])[1]


def _role(name: str, header: list[str]) -> str:
    """Return a column's name; one of ROLES for its name in other letters, such as `File`, if no other column has it."""
    role = name.lower()
    others = [other for other in header if other.lower() == role]
    return role if role in ROLES and len(others) == 1 else name


def _notes(path: Path, encoding: str, delimiter: str) -> tuple[str, ...]:
    if encoding in ("utf-8", "utf-8-sig") and delimiter == ",":
        return ()
    return (f"{path} is read as {encoding.upper()} with {DELIMITERS.get(delimiter, repr(delimiter))} between cells.",)
