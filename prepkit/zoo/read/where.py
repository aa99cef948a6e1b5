"""`where`: a condition on a zoo's table, parsed into a pyarrow expression. Nothing in it is evaluated as Python.

    accuracy > 0.8 and architecture == 'resnet8@cifar10'
    0.1 <= lr < 0.5 and split in ('train', 'validation') and not run == 3
    teacher_accuracy is None
    '2026-11-01' <= day < '2026-12-01' and finished > '2026-11-27 13:50'
    `config.l2` < 1e-3 and `train-acc` > 0.9

Dates and timestamps are compared with text in ISO 8601; where the timestamps of a column have a time zone, one in a
condition that has none is in UTC. A column of lists can be asked for None only.

A name that is not made of letters, digits and _ stands in backticks, as in pandas; in double quotes it would be text.

Grammar: comparisons of columns and constants (chains too), `in` and `not in` with a list of constants, `is None`,
`is not None` (also `== None`, `!= None`), `and`, `or`, `not`, parentheses.

A comparison with a missing value is neither true nor false, as in SQL: its row matches neither the comparison nor the
comparison's `not`. `and` and `or` ignore a missing side when the other decides.
"""

from __future__ import annotations

import ast
import operator
import re
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from prepkit.errors import WhereError, listed, nearest
from prepkit.zoo.format.tables import whole_numbers

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
TEXT_OR_NAME = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|`(?P<name>[^`]*)`|`""")
MAX_LENGTH = 10_000  # bounds the recursion of Python's parser; a condition that a person writes is far shorter
QUOTED = 200  # characters of a condition that an error quotes


def parse_where(text: str, columns: Sequence[str] | pa.Schema | None) -> Any:
    """Parse a condition into a pyarrow.compute expression.

    columns: names of columns that the condition may use, or their schema, with which types are checked too; None to
             check all but these, where the table is not at hand yet
    raises WhereError with the place and the reason
    """
    if not isinstance(text, str):
        raise WhereError(f'a condition is text such as "accuracy > 0.8", not a {type(text).__name__}.')
    if len(text) > MAX_LENGTH:
        raise WhereError(f"the condition has {len(text):,} characters; at most {MAX_LENGTH:,} are read.")
    try:
        return _Parser(text, columns).condition(_parsed(text))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, WhereError):
            raise
        reason = error.msg if isinstance(error, SyntaxError) else _reason(error)
        example = "accuracy > 0.8 and split == 'train'"
        raise WhereError(f"{_short(text)!r} is not a condition: {reason}. Example: {example}") from None


def matching_rows(table: pa.Table, condition: str) -> np.ndarray:
    """Return the numbers of the rows for which a condition is true.

    raises WhereError
    """
    import numpy as np
    import pyarrow as pa

    expression = parse_where(condition, table.schema)
    number = "`number`"  # a name that no column of the user's can have
    numbered = table.append_column(number, pa.array(np.arange(len(table))))
    try:
        numbers: np.ndarray = whole_numbers(_filtered(numbered, expression)[number])
    except pa.ArrowException as error:
        raise WhereError(f"condition {condition!r}: {str(error).splitlines()[0]}") from None
    return numbers


def _filtered(table: pa.Table, expression: Any) -> pa.Table:
    """Return the rows that match, without pyarrow's threads: one that still runs at the interpreter's end aborts it."""
    from pyarrow import acero

    source = acero.Declaration("table_source", acero.TableSourceNodeOptions(table))
    matching = acero.Declaration("filter", acero.FilterNodeOptions(expression))
    return acero.Declaration.from_sequence([source, matching]).to_table(use_threads=False)


def _parsed(text: str) -> ast.expr:
    plain, names = _without_backticks(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of `1in x` and '\\d', which need not be shown
        node = ast.parse(plain.strip(), mode="eval").body
    if names:
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and part.id in names:
                part.id = names[part.id]
    return node


def _without_backticks(text: str) -> tuple[str, dict[str, str]]:
    """Return a condition that Python parses, and the names in backticks by those that stand in their places.

    raises ValueError for a backtick without a second one
    """
    names: dict[str, str] = {}
    free = "_"
    while free in text:
        free += "_"

    def replaced(match: re.Match[str]) -> str:
        name = match["name"]
        if name is None:
            if match[0] == "`":
                raise ValueError("a backtick is not closed")
            return match[0]
        names[f"quoted{free}{len(names)}"] = name
        return f" quoted{free}{len(names) - 1} "

    return (TEXT_OR_NAME.sub(replaced, text), names) if "`" in text else (text, names)


def _reason(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError | MemoryError) else str(error)


def _short(text: str) -> str:
    return text if len(text) <= QUOTED else f"{text[:QUOTED]}..."


class _Parser:
    """Turns the parts of a condition into expressions; errors quote the text and the columns."""

    def __init__(self, text: str, columns: Sequence[str] | pa.Schema | None) -> None:
        import pyarrow as pa

        self.text = text
        self.schema = columns if isinstance(columns, pa.Schema) else None
        self.are_known = columns is not None
        self.columns: Sequence[str] = columns.names if isinstance(columns, pa.Schema) else columns or ()

    def condition(self, node: ast.expr) -> Any:
        """Return an expression that is true or false for a row."""
        if isinstance(node, ast.BoolOp):
            combine = operator.and_ if isinstance(node.op, ast.And) else operator.or_
            return _combined(combine, [self.condition(value) for value in node.values])
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self.condition(node.operand)
        if isinstance(node, ast.Compare):
            return self.comparison(node)
        if isinstance(node, ast.Name):  # a column of booleans
            return self.column(node)
        raise self.error(node, "expected a comparison such as accuracy > 0.8")

    def comparison(self, node: ast.Compare) -> Any:
        """Return the expression of `a < b <= c`, `a in (...)` or `a is None`."""
        terms = [node.left, *node.comparators]
        links = [self.link(a, op, b, node) for a, op, b in zip(terms, node.ops, terms[1:], strict=False)]
        return _combined(operator.and_, links)

    def link(self, left: ast.expr, op: ast.cmpop, right: ast.expr, node: ast.Compare) -> Any:
        """Return the expression of one comparison in a chain."""
        if isinstance(op, ast.In | ast.NotIn):
            column = self.column(left)
            elements = self.elements(right)
            for element in elements:
                self.check_kinds(left, element, node)
            # `isin` would find a missing value in no list, and needs constants of the column's type.
            is_listed = _combined(operator.or_, [column == self.constant(element, left) for element in elements])
            return is_listed if isinstance(op, ast.In) else ~is_listed
        if isinstance(op, ast.Eq | ast.NotEq) and _is_none(left):
            left, right = right, left
        if isinstance(op, ast.Is | ast.IsNot) or (isinstance(op, ast.Eq | ast.NotEq) and _is_none(right)):
            if not _is_none(right):
                raise self.error(right, "`is` goes with None only")
            column = self.column(left)
            return column.is_null() if isinstance(op, ast.Is | ast.Eq) else column.is_valid()
        if not isinstance(left, ast.Name) and not isinstance(right, ast.Name):
            raise self.error(node, "a comparison needs a column")
        self.check_kinds(left, right, node)
        return COMPARISONS[type(op)](self.term(left, right), self.term(right, left))

    def check_kinds(self, left: ast.expr, right: ast.expr, node: ast.expr) -> None:
        """Raise WhereError if a side is a list, or one side is text or a time and the other one is not."""
        kinds = {self.kind(left), self.kind(right)} - {None}
        if "list" in kinds:
            side = left if self.kind(left) == "list" else right
            raise self.error(
                node, f"the column {ast.unparse(side)} holds lists; a condition can only ask whether it `is None`"
            )
        if self.time_type(left) is not None or self.time_type(right) is not None:
            self.check_time(left, right, node)
            return
        if len(kinds) < 2 or "text" not in kinds:
            return
        text, other = (left, right) if self.kind(left) == "text" else (right, left)
        is_column = isinstance(text, ast.Name)
        remedy = "put a text in quotes" if is_column else "leave the quotes out"
        if is_column:
            remedy += ", or make the zoo again with numbers in the column"
        text_name = f"the column {ast.unparse(text)}" if is_column else ast.unparse(text)
        raise self.error(node, f"{text_name} is text and {ast.unparse(other)} is not; {remedy}")

    def check_time(self, left: ast.expr, right: ast.expr, node: ast.expr) -> None:
        """Raise WhereError unless a date or timestamp is compared with another one, or with text that may be one."""
        column, other = (left, right) if self.time_type(left) is not None else (right, left)
        is_text = isinstance(other, ast.Constant) and isinstance(other.value, str)
        if not is_text and self.time_type(other) is None and self.kind(other) is not None:
            raise self.error(
                node,
                f"the column {ast.unparse(column)} holds dates or times and {ast.unparse(other)} is none; compare it "
                "with text such as '2026-11-27' or '2026-11-27 13:50'",
            )

    def time_type(self, node: ast.expr) -> pa.DataType | None:
        """Return the type of a column of dates or timestamps, None for all else."""
        from pyarrow import types

        type_ = self.type_of(node)
        return type_ if type_ is not None and (types.is_date(type_) or types.is_timestamp(type_)) else None

    def type_of(self, node: ast.expr) -> pa.DataType | None:
        """Return the type of a column; None where it is not known, and for constants."""
        if not isinstance(node, ast.Name) or self.schema is None or node.id not in self.columns:
            return None
        return self.schema.field(node.id).type

    def kind(self, node: ast.expr) -> str | None:
        """Return "text", "list" or "other" for a column or a constant; None where it is not known."""
        from pyarrow import types

        if isinstance(node, ast.Name):
            type_ = self.type_of(node)
            if type_ is None or types.is_null(type_):
                return None
            if types.is_nested(type_):
                return "list"
            return "text" if types.is_string(type_) or types.is_large_string(type_) else "other"
        if isinstance(node, ast.UnaryOp):
            return "other"
        return "text" if isinstance(getattr(node, "value", None), str) else "other"

    def term(self, node: ast.expr, other: ast.expr) -> Any:
        """Return the expression of a column or a constant, which is compared with `other`."""
        return self.column(node) if isinstance(node, ast.Name) else self.constant(node, other)

    def column(self, node: ast.expr) -> Any:
        """Return the expression of a column that the table has."""
        import pyarrow.compute as pc

        if not isinstance(node, ast.Name):
            raise self.error(node, "expected the name of a column")
        if self.are_known and node.id not in self.columns:
            hint = nearest(node.id, self.columns)
            raise self.error(node, f"there is no column '{node.id}'; there are {listed(self.columns, 20)}.{hint}")
        return pc.field(node.id)

    def elements(self, node: ast.expr) -> list[ast.expr]:
        """Return the constants in a list, tuple or set."""
        if not isinstance(node, ast.List | ast.Tuple | ast.Set) or not node.elts:
            raise self.error(node, "`in` needs a list of constants such as ('train', 'test')")
        return node.elts

    def constant(self, node: ast.expr, column: ast.expr) -> Any:
        """Return the expression of a number, a text, True or False, or of a time if it is compared with one."""
        import pyarrow.compute as pc

        value: Any = self.value(node)
        kind = self.time_type(column)
        if kind is not None:
            value = self.time(node, kind)
        try:
            return pc.scalar(value)
        except OverflowError:
            raise self.error(node, "the number does not fit 64 bits") from None
        except UnicodeError:
            raise self.error(node, "the text is not valid Unicode") from None

    def time(self, node: ast.expr, kind: pa.DataType) -> date | datetime:
        """Return the date or timestamp that a text in ISO 8601 says, to be compared with a column of this type."""
        text = str(self.value(node))
        try:
            time = date.fromisoformat(text) if len(text) <= len("2026-11-27") else datetime.fromisoformat(text)
        except ValueError:
            raise self.error(node, "it is no date or time; write it as '2026-11-27' or '2026-11-27 13:50'") from None
        zone = getattr(kind, "tz", None)
        if zone is None and isinstance(time, datetime) and time.tzinfo is not None:
            raise self.error(node, "the times of the column have no time zone; leave it out")
        if zone is None:
            return time
        moment = time if isinstance(time, datetime) else datetime(time.year, time.month, time.day)
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)

    def value(self, node: ast.expr) -> int | float | str:
        """Return the Python value of a constant, with its sign."""
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            operand = node.operand
            if not isinstance(operand, ast.Constant) or type(operand.value) not in (int, float):
                raise self.error(node, "a sign goes with a number")
            number: int | float = operand.value  # type: ignore[assignment]  # checked above
            return -number if isinstance(node.op, ast.USub) else number
        if not isinstance(node, ast.Constant) or not isinstance(node.value, int | float | str):
            raise self.error(node, "expected a number, text in quotes, True or False")
        return node.value

    def error(self, node: ast.AST, reason: str) -> WhereError:
        """Return a WhereError that quotes the part that is wrong."""
        is_bitwise = isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr)
        if is_bitwise or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert)):
            reason = "use `and`, `or`, `not`"
        for part in (node, *ast.iter_child_nodes(node)):
            if isinstance(part, ast.Attribute | ast.BinOp):
                name = ast.unparse(part).replace(" ", "")
                is_name = name in self.columns if self.are_known else isinstance(part, ast.Attribute)
                reason = f"put the name of the column in backticks: `{name}`" if is_name else reason
        sentence = reason if reason.endswith((".", "?")) else f"{reason}."
        return WhereError(f"condition {_short(self.text)!r}, at {_short(ast.unparse(node))!r}: {sentence}")


def _combined(combine: Callable[[Any, Any], Any], terms: list[Any]) -> Any:
    """Combine all terms as a balanced tree: walking a deep tree would exhaust the stack."""
    if len(terms) == 1:
        return terms[0]
    middle = len(terms) // 2
    return combine(_combined(combine, terms[:middle]), _combined(combine, terms[middle:]))


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
