"""Tests of splits: they are seeded and stratified, keep runs together, and do not depend on the order of the rows."""

import multiprocessing
import pickle
import time
from collections import Counter, defaultdict
from functools import partial

import pyarrow as pa
import pytest
from folder_contents import files_of
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo_samples import NAMES, write_zoo

from prepkit.api import open_zoo, verify
from prepkit.errors import OutputError, ZooError, ZooLocked
from prepkit.support.files import ZOO_LOCK
from prepkit.support.lock import changing
from prepkit.zoo.card.card import write_card
from prepkit.zoo.change import splitting
from prepkit.zoo.change.cleaning import clean
from prepkit.zoo.change.merge import merge
from prepkit.zoo.change.splitting import assigned, checked_fractions, groups_of
from prepkit.zoo.format import tables
from prepkit.zoo.format.manifest import read_manifest
from prepkit.zoo.read import store

split = partial(splitting.split, card=False, force=True)
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
        column = {"split.original": "split"}.get(name, name)
        assert name == "split" or zoo.table[name].equals(before.table[column])
    assert zoo.table.column_names == [*before.table.column_names, "split.original"]
    assert verify(root).ok
    assert verify(root).notes == (f"{old.table.path}: the manifest does not name it; `prepkit zoo clean` removes it.",)
    assert read_manifest(root).table.path == found.table != old.table.path
    by_run = defaultdict(set)
    for row in zoo.table.to_pylist():
        by_run[row["run"]].add(row["split"])
    assert all(len(names) == 1 for names in by_run.values())


def test_the_usual_fractions_and_a_card(tmp_path):
    root = write_zoo(tmp_path / "zoo", count=40)
    assert {name: sum(c.values()) for name, c in splitting.split(root, force=True).counts.items()} == {
        "train": 32,
        "validation": 4,
        "test": 4,
    }
    assert read_manifest(root).table.path in (root / "README.md").read_text()


def test_splitting_again_gives_the_same_bytes(tmp_path):
    root = write_zoo(tmp_path / "zoo")
    split(root, THREE)
    once = files_of(root)
    split(root, THREE)
    assert files_of(root) == once


def test_groups_can_be_another_column_or_none(tmp_path):
    root = write_zoo(tmp_path / "zoo", count=20)
    assert split(root, THREE, group="note").group == "note"
    alone = split(root, THREE, group=False)
    assert (alone.group, alone.groups) == (None, 20)
    with pytest.raises(
        ZooError,
        match=r"no column 'runs' to group by; there are accuracy, run, note, split.original. Did you mean 'run'",
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
    before = files_of(root)
    with pytest.raises(ZooError, match=message):
        split(root, fractions)
    assert files_of(root) == before


def test_too_few_groups_are_noted_and_an_empty_zoo_is_fine(tmp_path):
    found = split(write_zoo(tmp_path / "a", count=2), THREE)
    assert found.notes == ("validation, test: no instance, 1 groups are too few for these fractions.",)
    assert split(write_zoo(tmp_path / "b", count=0), THREE).notes == ()


def test_a_failure_leaves_the_old_split(tmp_path, monkeypatch):
    root = write_zoo(tmp_path / "zoo", names=NAMES)
    before = files_of(root)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tables, "write_table_at_once", full)
    with pytest.raises(OutputError, match="the disk is full"):
        split(root, THREE)
    assert files_of(root) == before


# A split that is there ----------------------------------------------------------------------------------------


def test_a_split_is_replaced_only_if_forced_and_is_kept(tmp_path):
    root = write_zoo(tmp_path / "zoo", count=40)
    before, old = files_of(root), open_zoo(root).table["split"]
    with pytest.raises(ZooError, match=r"has a split already \(test 13, train 13\); force=True draws another"):
        splitting.split(root)
    assert files_of(root) == before
    first = splitting.split(root, force=True, keep_as="paper")
    assert first.kept == "split.paper"
    zoo = open_zoo(root)
    assert zoo.table["split.paper"].equals(old)
    record = {
        "seed": 0,
        "shares": {"train": 0.8, "validation": 0.1, "test": 0.1},
        "group": "run",
        "kept": "split.paper",
    }
    assert zoo.manifest.provenance == {"drawn_split": record}
    card = (root / "README.md").read_text()
    assert "seed 0 and shares test 0.1, train 0.8, validation 0.1. Instances of the same `run`" in card
    assert "The column `split.paper` holds the split that it replaced." in card
    assert "| train | 32 |" in card
    assert "| split.paper | string | 14 | its split before `zoo split` replaced it |" in card


def test_every_split_that_was_replaced_is_kept_once(tmp_path):
    root = write_zoo(tmp_path / "zoo", count=40)
    drawn = {}
    for seed in (0, 1, 0, 1):
        split(root, seed=seed)
        drawn.setdefault(seed, open_zoo(root).table["split"].to_pylist())
        assert open_zoo(root).table["split"].to_pylist() == drawn[seed]
    zoo = open_zoo(root)
    assert [name for name in zoo.table.column_names if name.startswith("split.")] == [
        "split.original",
        "split.seed0",
        "split.seed1",
    ]
    assert [zoo.table[f"split.seed{seed}"].to_pylist() for seed in (0, 1)] == [drawn[0], drawn[1]]
    assert zoo.manifest.provenance["split.seed0"]["seed"] == 0
    assert split(root, {"train": 1.0}, seed=1).kept == "split.seed1"
    assert split(root, {"test": 1.0}, seed=1).kept == "split.seed1_2"  # of the same seed, with other shares


def test_names_of_kept_splits(tmp_path):
    root = write_zoo(tmp_path / "zoo", count=40)
    with pytest.raises(ZooError, match=r"keep_as='a`b': 'split\.a`b' cannot name a column"):
        split(root, keep_as="a`b")
    with pytest.raises(ZooError, match="keep_as='': '' cannot name a column"):
        split(root, keep_as="")
    split(root, keep_as="paper")
    with pytest.raises(ZooError, match=r"there is a column 'split.paper' already, with another split"):
        split(root, seed=1, keep_as="paper")


def test_a_zoo_without_a_split_needs_no_force(tmp_path):
    root = write_zoo(tmp_path / "zoo", count=0, tensors=4)
    assert splitting.split(root, card=False).kept is None
    assert open_zoo(root).table.column_names[-1] != "split.original"
    with pytest.raises(ZooError, match="has a split already"):
        splitting.split(root, card=False)


def test_a_kept_split_stays_in_a_merged_zoo(tmp_path):
    split(write_zoo(tmp_path / "a", count=6))
    write_zoo(tmp_path / "b", count=6, prefix="n")
    merge(tmp_path / "both", [tmp_path / "a", tmp_path / "b"])
    kept = open_zoo(tmp_path / "both").table["split.original"].to_pylist()
    assert kept == [None, "train", "test"] * 2 + [None] * 6


def test_an_own_readme_is_noted(tmp_path):
    root = write_zoo(tmp_path / "zoo", count=40)
    (root / "README.md").write_text("my words")
    (note,) = splitting.split(root, force=True).notes
    assert note == f"{root / 'README.md'} is your own text, so it was left alone; see whether it tells the old split."


# Others at the same time --------------------------------------------------------------------------------------


def splits_often(root, seeds, outcomes):
    """Draw a split with each seed, again and again while the other process holds the lock."""
    for seed in seeds:
        outcome = "locked"
        while outcome == "locked":
            try:
                split(root, THREE, seed=seed)
                outcome = "done"
            except ZooLocked:
                time.sleep(0.001)
            except BaseException as error:
                outcome = repr(error)
        outcomes.put(outcome)


def test_two_that_split_and_one_that_reads(tmp_path):
    root = write_zoo(tmp_path / "zoo", count=12)
    values = open_zoo(root).preps()
    context = multiprocessing.get_context("fork")
    outcomes = context.Queue()
    seeds = range(12), range(12, 24)
    both = [context.Process(target=splits_often, args=(root, part, outcomes)) for part in seeds]
    for process in both:
        process.start()
    found = []
    while len(found) < 24:
        assert open_zoo(root).preps().equal(values)
        while not outcomes.empty():
            found.append(outcomes.get())
    for process in both:
        process.join(60)
    assert found == ["done"] * 24
    assert verify(root).ok
    assert not (root / ZOO_LOCK).exists()


def test_a_zoo_that_is_open_goes_on_in_other_processes(tmp_path):
    root = write_zoo(tmp_path / "zoo", count=12)
    zoo = open_zoo(root).split("train")
    pickled = pickle.dumps(zoo)
    split(root, THREE)
    again = pickle.loads(pickled)
    assert again.table.equals(zoo.table)
    assert again.manifest.splits == zoo.manifest.splits != open_zoo(root).manifest.splits
    assert again.preps().equal(zoo.preps())


def test_a_table_that_goes_while_a_zoo_is_opened(tmp_path, monkeypatch):
    root = write_zoo(tmp_path / "zoo", count=12)

    def replaced(path):
        manifest = read_manifest(path)
        monkeypatch.undo()
        split(root, THREE)
        clean(root)
        return manifest

    monkeypatch.setattr(store, "read_manifest", replaced)
    assert "split.original" in open_zoo(root).table.column_names


@pytest.mark.parametrize("change", [split, write_card, clean])
def test_whoever_changes_a_zoo_holds_its_lock(tmp_path, change):
    root = write_zoo(tmp_path / "zoo", count=6)
    before = files_of(root)
    with changing(root), pytest.raises(ZooLocked, match=r"zoo' is being written by process \d+"):
        change(root)
    assert files_of(root) == before
    change(root)


def test_a_folder_that_is_no_zoo_gets_no_lock(tmp_path):
    for change in (split, write_card, clean):
        with pytest.raises(ZooError):
            change(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_fractions_are_taken_as_written():
    assert [str(share) for share in checked_fractions(THREE).values()] == ["4/5", "1/10", "1/10"]
