"""Tables as files: what other programs read from them, and what cannot be written."""

from datetime import UTC, date, datetime

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from prepkit.errors import OutputError
from prepkit.support.table_files import write_table


@pytest.fixture
def table():
    values = np.arange(6, dtype=np.float32) / 3
    return pa.table(
        {
            "id": ["a", 'b "quoted", comma'],
            "file": [1, None],
            "note": [None, "x"],
            "accuracy": [0.1, 0.25],
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(values), 3),
        }
    )


def test_parquet_is_the_table(table, tmp_path):
    write_table(table, tmp_path / "t.parquet")
    assert pa.parquet.read_table(tmp_path / "t.parquet").equals(table)


def test_csv_has_a_column_for_each_value(table, tmp_path):
    write_table(table, tmp_path / "t.csv")
    found = pa.csv.read_csv(tmp_path / "t.csv")
    assert found.column_names == ["id", "file", "note", "accuracy", "embedding_0", "embedding_1", "embedding_2"]
    assert found["id"].to_pylist() == table["id"].to_pylist()
    read = np.stack([found[f"embedding_{number}"].to_numpy() for number in range(3)], axis=1)
    np.testing.assert_array_equal(read.astype(np.float32), np.array(table["embedding"].to_pylist(), np.float32))


def test_npz_has_an_array_for_each_column(table, tmp_path):
    write_table(table, tmp_path / "t.npz")
    with np.load(tmp_path / "t.npz", allow_pickle=False) as found:
        assert sorted(found) == sorted(table.column_names)
        np.testing.assert_array_equal(found["embedding"], np.array(table["embedding"].to_pylist(), np.float32))
        assert found["id"].tolist() == table["id"].to_pylist()
        np.testing.assert_array_equal(found["file"], [1, np.nan])
        assert found["note"].tolist() == ["", "x"]


def test_a_slice_of_a_table(table, tmp_path):
    """An Arrow slice keeps the values before it in memory."""
    last = table.slice(1)
    write_table(last, tmp_path / "t.csv")
    assert pa.csv.read_csv(tmp_path / "t.csv")["embedding_0"].to_pylist() == [1.0]
    write_table(last, tmp_path / "t.npz")
    assert np.load(tmp_path / "t.npz")["embedding"].tolist() == last["embedding"].to_pylist()


@pytest.mark.parametrize(("name", "message"), [("t.xlsx", "suffix"), ("old.csv", "exists already"), ("no/t.csv", "no")])
def test_what_cannot_be_written(table, tmp_path, name, message):
    (tmp_path / "old.csv").write_text("old")
    with pytest.raises(OutputError, match=message):
        write_table(table, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["old.csv"]
    assert (tmp_path / "old.csv").read_text() == "old"


def test_lists_and_times(tmp_path):
    table = pa.table(
        {
            "loss": [[0.5, float("nan")], None],
            "day": [date(2026, 11, 27), None],
            "at": pa.array([datetime(2026, 11, 27, 13, 50, tzinfo=UTC), None], pa.timestamp("us", "UTC")),
        }
    )
    write_table(table, tmp_path / "t.csv")
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert lines == ['"loss","day","at"', '"[0.5, ""nan""]",2026-11-27,2026-11-27 13:50:00.000000Z', ",,"]
    write_table(table, tmp_path / "t.npz")
    with np.load(tmp_path / "t.npz", allow_pickle=False) as found:
        assert found["loss"].tolist() == ['[0.5, "nan"]', ""]
        np.testing.assert_array_equal(found["day"], np.array(["2026-11-27", "NaT"], "datetime64[D]"))
        np.testing.assert_array_equal(found["at"], np.array(["2026-11-27T13:50", "NaT"], "datetime64[us]"))
