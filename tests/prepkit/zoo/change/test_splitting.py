"""Tests of splits: they are seeded and stratified, keep runs together, and do not depend on the order of the rows."""

from collections import Counter, defaultdict
from functools import partial

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo_samples import NAMES, bytes_of, write_zoo

from prepkit.api import open_zoo
from prepkit.errors import OutputError, ZooError
from prepkit.zoo.change import splitting
from prepkit.zoo.change.splitting import assigned, checked_fractions, groups_of
from prepkit.zoo.change.verify import verify
from prepkit.zoo.format.manifest import read_manifest

split = partial(splitting.split, card=False)
THREE = {"train": 0.8, "validation": 0.1, "test": 0.1}


def table(rows):
    """Make a table of rows (id, architecture, run)."""
    ids, architectures, runs = zip(*rows, strict=True) if rows else ((), (), ())
    columns = {"id": pa.array(ids, pa.string()), "architecture": pa.array(architectures, pa.string())}
    return pa.table({**columns, "run": pa.array(runs, pa.int64())})


def splits(rows, fractions=THREE, seed=0, column="run"):
    groups = groups_of(table(rows), column)
    given_splits = assigned(groups, checked_fractions(fractions), seed, len(rows))
    return {row[0]: split for row, split in zip(rows, given_splits, strict=True)}


def many(count, runs=1):
    """Make rows of `count` instances of each of three architectures, with `runs` instances a run."""
    return [
        (f"{name}{n:03d}", name, 10_000 * a + n // runs) for a, name in enumerate(("x", "y", "z")) for n in range(count)
    ]


def shares(rows, found):
    counts = defaultdict(Counter)
    for id, architecture, _ in rows:
        counts[architecture][found[id]] += 1
    return {name: tuple(counter[split] for split in THREE) for name, counter in counts.items()}


def test_each_architecture_has_the_same_shares():
    rows = many(200, runs=5)
    assert shares(rows, splits(rows)) == dict.fromkeys("xyz", (160, 20, 20))


def test_what_rounding_leaves_is_carried_on():
    rows = [(f"{a}{n}", f"arch{a:02d}", None) for a in range(20) for n in range(3)]  # 60 instances, three of each
    assert Counter(splits(rows).values()) == {"train": 48, "validation": 6, "test": 6}


def test_a_run_is_never_separated_and_a_row_without_run_stands_for_itself():
    rows = [*many(40, runs=8), *((f"free{n}", "x", None) for n in range(20))]
    found = splits(rows)
    by_run = defaultdict(set)
    for id, _, run in rows:
        by_run[run].add(found[id])
    assert all(len(names) == 1 for run, names in by_run.items() if run is not None)
    assert len(by_run[None]) > 1


def test_a_run_across_architectures_stays_whole():
    rows = [(f"{name}{run}", name, run) for run in range(30) for name in "xy"]
    found = splits(rows)
    assert all(found[f"x{run}"] == found[f"y{run}"] for run in range(30))
    assert Counter(found.values()) == {"train": 48, "validation": 6, "test": 6}


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("xyz"), st.none() | st.integers(0, 6)), max_size=40),
    st.integers(0, 5),
    st.randoms(use_true_random=False),
    st.sampled_from([THREE, {"a": 1.0}, {"train": 0.5, "validation": 0.0, "test": 0.5}, {"p": 0.3, "q": 0.7}]),
)
def test_the_order_of_rows_does_not_matter_and_every_row_has_a_split(members, seed, generator, fractions):
    rows = [(f"id{number}", name, run) for number, (name, run) in enumerate(members)]
    shuffled = generator.sample(rows, len(rows))
    found = splits(rows, fractions, seed)
    assert found == splits(shuffled, fractions, seed)
    assert set(found.values()) <= {name for name, share in fractions.items() if share}
    largest = max(Counter(run for _, _, run in rows if run is not None).values(), default=1)
    for name, share in fractions.items():
        assert abs(list(found.values()).count(name) - share * len(rows)) < len(fractions) * max(largest, 1)


def test_another_seed_is_another_split_and_the_same_is_the_same():
    rows = many(30)
    assert splits(rows, seed=1) == splits(rows, seed=1) != splits(rows, seed=2)
    drawn = [id for id, split in sorted(splits(rows, seed=0).items()) if split == "test"]
    assert drawn == ["x014", "x015", "x017", "y020", "y025", "y026", "z005", "z020", "z026"]  # the same for ever


# Zoos ---------------------------------------------------------------------------------------------------------


def test_a_zoo_is_split_and_stays_whole(tmp_path):
    root = write_zoo(tmp_path / "zoo", count=40)
    before = open_zoo(root)
    old = read_manifest(root)
    found = split(root, THREE, seed=3)
    zoo = open_zoo(root)
    assert (found.group, found.groups, found.notes) == ("run", 20, ())
    assert {name: sum(counts.values()) for name, counts in found.counts.items()} == dict(zoo.manifest.splits)
    assert dict(zoo.manifest.splits) == {"test": 4, "train": 32, "validation": 4}
    for name in zoo.table.column_names:
        assert name == "split" or zoo.table[name].equals(before.table[name])
    assert zoo.table.schema.equals(before.table.schema)
    assert verify(root).ok
    assert verify(root).notes == ()  # the old table is gone
    assert read_manifest(root).table.path == found.table != old.table.path
    by_run = defaultdict(set)
    for row in zoo.table.to_pylist():
        by_run[row["run"]].add(row["split"])
    assert all(len(names) == 1 for names in by_run.values())


def test_the_usual_fractions_and_a_card(tmp_path):
    root = write_zoo(tmp_path / "zoo", count=40)
    assert {name: sum(c.values()) for name, c in splitting.split(root).counts.items()} == {
        "train": 32,
        "validation": 4,
        "test": 4,
    }
    assert read_manifest(root).table.path in (root / "README.md").read_text()


def test_splitting_again_gives_the_same_bytes(tmp_path):
    root = write_zoo(tmp_path / "zoo")
    split(root, THREE)
    once = bytes_of(root)
    split(root, THREE)
    assert bytes_of(root) == once


def test_groups_can_be_another_column_or_none(tmp_path):
    root = write_zoo(tmp_path / "zoo", count=20)
    assert split(root, THREE, group="note").group == "note"
    alone = split(root, THREE, group=False)
    assert (alone.group, alone.groups) == (None, 20)
    with pytest.raises(
        ZooError, match=r"no column 'runs' to group by; there are accuracy, run, note. Did you mean 'run'"
    ):
        split(root, THREE, group="runs")
    with pytest.raises(ZooError, match="no column 'id' to group by"):
        split(root, THREE, group="id")


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({"train": 0.8, "test": 0.1}, "sum to 1; given: train 0.8, test 0.1, which sum to 0.9"),
        ({"train": 1.2, "test": -0.2}, "between 0 and 1"),
        ({"train": float("nan")}, "between 0 and 1"),
    ],
)
def test_wrong_fractions_change_nothing(tmp_path, fractions, message):
    root = write_zoo(tmp_path / "zoo", count=2)
    before = bytes_of(root)
    with pytest.raises(ZooError, match=message):
        split(root, fractions)
    assert bytes_of(root) == before


def test_too_few_groups_are_noted_and_an_empty_zoo_is_fine(tmp_path):
    found = split(write_zoo(tmp_path / "a", count=2), THREE)
    assert found.notes == ("validation, test: no instance, 1 groups are too few for these fractions.",)
    assert split(write_zoo(tmp_path / "b", count=0), THREE).notes == ()


def test_a_failure_leaves_the_old_split(tmp_path, monkeypatch):
    root = write_zoo(tmp_path / "zoo", names=NAMES)
    before = bytes_of(root)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(splitting, "publish_table", full)
    with pytest.raises(OutputError, match="the disk is full"):
        split(root, THREE)
    assert bytes_of(root) == before


def test_fractions_are_taken_as_written():
    assert [str(share) for share in checked_fractions(THREE).values()] == ["4/5", "1/10", "1/10"]
