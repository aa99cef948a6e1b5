"""Optimisation: gains and start points are computed a second time by hand, on small zoos."""

import numpy as np
import pyarrow as pa
import pytest
from experiment_samples import complete

import prepkit
from netspace.experiments import optimisation
from netspace.explore.optimization import Optimisation

pytestmark = pytest.mark.usefixtures("one_thread")


def test_optimisation(ready):
    """The untrained space predicts resnet8 for nearly all, so the other architectures have no accuracy to gain."""
    subject = ready("digits_multi", change=lambda space, zoo: space.classifier.linear.bias.fill_(0)[2].fill_(1e3))
    result = optimisation.run(subject, starts=2, steps=10)
    complete(result, subject.folder)
    test = subject.zoo.split("test").table.to_pylist()
    inputs = {row["id"]: row["accuracy"] for row in test}
    assert len(result.tables[0].rows) == 8
    points = {}
    for start, kind, at_first, in_the_end, *numbers in result.tables[1].rows:
        assert at_first == in_the_end == "resnet8@digits"
        assert numbers[0] == pytest.approx(100 * inputs[start], abs=0.006)
        name = next(row["architecture"] for row in test if row["id"] == start)
        points.setdefault((name, kind), []).append((start, *numbers))
    for name, kind, input_accuracy, initial, best, gain, over, _, improved, reached, room in result.tables[0].rows:
        own = points[name, kind]
        assert input_accuracy == pytest.approx(np.mean([row[1] for row in own]), abs=0.011)
        if name != "resnet8@digits":
            assert (initial, best, gain, over) == (None,) * 4
            assert (improved, reached, room) == ("0 of 0", 0, "of another class at first")
            continue
        assert initial == pytest.approx(np.mean([row[2] for row in own]), abs=0.011)
        assert best == pytest.approx(np.mean([row[3] for row in own]), abs=0.011)
        assert gain == pytest.approx(best - initial, abs=0.021)
        assert over == pytest.approx(best - input_accuracy, abs=0.021)
        assert improved == f"{sum(row[3] > row[2] for row in own)} of {len(own)}"
        assert room == ("yes" if result.numbers["ceilings"][name] - initial / 100 > 0.01 else "at its ceiling")
    assert [claim.bound for claim in result.claims] == ["> 0"] * 3
    for claim, kind in zip(result.claims, optimisation.WORDS, strict=False):
        (row,) = [row for row in result.tables[0].rows if row[:2] == ("resnet8@digits", kind)]
        if row[-1] == "yes":
            assert 100 * claim.number == pytest.approx(row[5], abs=0.006)
        else:
            assert (claim.verdict, claim.reason) == ("not told", optimisation.OTHER_CLASS)
    assert "had not stopped when the steps ended" in result.text


def walk_of(rows):
    """An Optimisation with these rows: start, asked ClassId, ClassId at first, in the end, accuracies."""
    keys = ("start", "asked_class_id", "initial_class_id", "class_id", "initial_accuracy", "accuracy")
    more = {"initial_validation_accuracy": 0.0, "validation_accuracy": 0.0, "stopped": True, "last_step": 1}
    table = pa.Table.from_pylist(
        [dict(zip(keys, row, strict=True)) | more | {"asked_architecture": f"a{row[1]}"} for row in rows]
    )
    return Optimisation(table, None, None, None, None)


def test_gains_by_hand():
    ids = "abcdefg"
    inputs, runs = dict.fromkeys(ids, 0.5) | {"f": 0.9}, {id: id for id in ids}
    moved = walk_of(
        [
            ("a", 0, 0, 0, 0.5, 0.7),  # gains 0.2
            ("b", 0, 0, 0, 0.6, 0.7),  # gains 0.1
            ("c", 0, 1, 0, 0.02, 0.95),  # comes to its class, and 0.93 are no gain
            ("d", 1, 1, 1, 0.3, 0.31),  # gains 0.01
            ("e", 1, 1, 1, 0.3, 0.35),  # gains 0.05
            ("g", 1, 0, 1, 0.0, 0.93),  # comes to its class too, and is no gain either
            ("f", 2, 2, 2, 0.9, 0.9),  # is at its ceiling
        ]
    )
    ceilings = {"a0": 0.9, "a1": 0.9, "a2": 0.905}
    measured = optimisation.measures(moved, inputs, ceilings)
    assert [measured[name]["gain"] for name in ceilings] == pytest.approx([0.15, 0.03, 0])
    assert [measured[name]["reached"] for name in ceilings] == [1, 1, 0]
    assert measured["a0"]["gain_over_input"] == pytest.approx((0.2 + 0.2 + 0.45) / 3)
    assert [measured[name]["room"] for name in ceilings] == ["yes", "yes", "at its ceiling"]
    walks = dict.fromkeys(optimisation.WORDS, moved)
    claims = optimisation._claims(walks, dict.fromkeys(walks, measured), inputs, runs, 0)
    assert [claim.number for claim in claims] == pytest.approx([0.03, 0.03, 0.03])
    assert claims[0].interval == pytest.approx((0.01, 0.05))
    assert [claim.verdict for claim in claims] == ["held", "held", "undecided"]
    # Nothing but a change of class: 93 points are no gain.
    only = walk_of([("c", 0, 1, 0, 0.02, 0.95), ("b", 0, 1, 0, 0.02, 0.95)])
    walks = dict.fromkeys(optimisation.WORDS, only)
    measured = optimisation.measures(only, inputs, ceilings)
    claims = optimisation._claims(walks, dict.fromkeys(walks, measured), inputs, runs, 0)
    assert [(claim.verdict, claim.reason) for claim in claims[:2]] == [("not told", optimisation.OTHER_CLASS)] * 2
    assert claims[2].number == pytest.approx(0.45)  # but the instances are better than the input
    # Nothing at all: there is room, but no instance of the class.
    never = walk_of([("c", 0, 1, 1, 0.02, 0.95)])
    walks = dict.fromkeys(optimisation.WORDS, never)
    measured = optimisation.measures(never, inputs, ceilings)
    claims = optimisation._claims(walks, dict.fromkeys(walks, measured), inputs, runs, 0)
    assert (claims[2].verdict, claims[2].reason) == ("not told", optimisation.NEVER_REACHED)
    full = walk_of([("f", 2, 2, 2, 0.9, 0.9)])
    walks = dict.fromkeys(optimisation.WORDS, full)
    measured = optimisation.measures(full, inputs, ceilings)
    claims = optimisation._claims(walks, dict.fromkeys(walks, measured), inputs, runs, 0)
    assert [claim.reason for claim in claims] == [optimisation.NO_ROOM] * 3


def test_start_points_are_weak_and_strong_and_their_ceiling_is_the_better_half(tmp_path):
    registry = prepkit.Registry([prepkit.architecture("resnet8@digits")])
    accuracies = {"a": 0.9, "b": 0.2, "c": 0.5, "d": 0.8, "e": 0.6}
    with prepkit.ZooWriter(tmp_path / "zoo", width=128, registry=registry) as writer:
        for id, accuracy in accuracies.items():
            writer.add(prepkit.architecture("resnet8@digits").build(), id=id, split="test", accuracy=accuracy)
    zoo = prepkit.open_zoo(tmp_path / "zoo")
    assert optimisation.start_points(zoo, list(accuracies.values()), 3) == (
        ["b", "e", "a"],
        {"resnet8@digits": pytest.approx((0.6 + 0.8 + 0.9) / 3)},
    )
    assert optimisation.start_points(zoo, list(accuracies.values()), None)[0] == [
        "b",
        "c",
        "e",
        "d",
        "a",
    ]  # 6 are wanted
    assert optimisation.start_points(zoo, list(accuracies.values()), 1)[0] == ["b"]
