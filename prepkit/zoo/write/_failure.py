"""A failure that ends all writing of a zoo: its files may then hold more than the journal says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prepkit.errors import OutputError, ZooError
from prepkit.support.files import output_error


class Failure:
    """What writing a zoo failed of, if it did.

    root: the zoo's folder
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._error: BaseException | None = None

    def __bool__(self) -> bool:
        return self._error is not None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep what the block fails of, also Ctrl-C; an OSError becomes an OutputError."""
        try:
            yield
        except OSError as error:
            self._error = error if isinstance(error, OutputError) else output_error(self._root, error)
            raise self._error from error
        except BaseException as error:
            self._error = error
            raise

    def check(self) -> None:
        """Raise ZooError if there was a failure."""
        if self._error is not None:
            raise ZooError(
                f"writing '{self._root}' failed before ({str(self._error) or type(self._error).__name__}); what was "
                "finished is kept. Remove the cause, then go on with resume=True."
            ) from self._error
