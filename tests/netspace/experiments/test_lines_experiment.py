"""Lines: their numbers are computed a second time by hand, on small zoos."""

import numpy as np
import pytest
import torch
from experiment_samples import accuracy_by_hand, complete
from small_zoos import digits_zoo

import prepkit
from netspace.experiments import lines
from netspace.explore.sampling import PointError
from prepkit.support import bootstrap

pytestmark = pytest.mark.usefixtures("one_thread")


def test_lines(ready, tmp_path):
    counts = {"train": 2, "validation": 1, "test": 7}
    path = digits_zoo(tmp_path / "zoo", {"resnet8@digits": counts}, teacher=False, single=True)

    def spread(space, zoo):
        space.encoder.conv4.weight.mul_(100)
        space.decoder.conv1.weight.mul_(10)

    subject = ready("digits_single", path, spread)
    run, zoo, task = subject.run, subject.zoo, subject.task
    found = complete(lines.run(subject, steps=5), subject.folder)
    pairs = list(zip(*found.numbers["pairs_of"], strict=True))
    name = "resnet8@digits-test-{}".format  # its number is its accuracy, times 10
    assert sorted(pairs) == [(name(weak), name(strong)) for weak in (0, 1) for strong in (5, 6)]
    space, architecture = run.space(), prepkit.architecture("resnet8@digits")
    along = {"embedding": [], "weights": []}
    for ids in pairs:
        preps = torch.stack([zoo.preps([zoo.index(id)])[0] for id in ids])
        with torch.no_grad():
            latents = torch.cat([space.encode(one[None]) for one in preps])
        for line, (first, last) in (("embedding", latents), ("weights", preps)):
            values = []
            for step in range(5):
                point = first + (last - first) * step / 4
                with torch.no_grad():
                    prep = space.decode(point[None])[0] if line == "embedding" else point
                network = architecture.build_folded().eval()
                network.load_state_dict(architecture.layout.unpack(prep))
                values.append(accuracy_by_hand(network, task))
            along[line].append(values)
    falls = [max(values[a] - values[b] for a in range(5) for b in range(a, 5)) for values in along["embedding"]]
    assert len(set(falls)) > 1, "an example that shows something"
    shapes = found.numbers["shapes"]
    assert shapes["embedding"]["monotone"] == pytest.approx(sum(fall <= 0.02 for fall in falls) / 4)
    for line, values in along.items():
        mean = np.mean(values, axis=0)
        fall = max(mean[a] - mean[b] for a in range(5) for b in range(a, 5))
        assert shapes[line]["largest_fall_of_mean"] == pytest.approx(fall)
        assert shapes[line]["lowest"] == pytest.approx(min(mean[1:-1]))
        assert shapes[line]["middle"] == pytest.approx(mean[2])
        for key, ends in (("from_straight_line", values), ("from_line_between_targets", along["weights"])):
            apart = [
                abs(values[pair][step] - ends[pair][0] * (1 - step / 4) - ends[pair][-1] * step / 4)
                for pair in range(4)
                for step in range(5)
            ]
            assert shapes[line][key] == pytest.approx(np.mean(apart))
    embedding, weights = shapes["embedding"], shapes["weights"]
    assert [claim.number for claim in found.claims] == pytest.approx(
        [embedding["largest_fall_of_mean"], embedding["monotone"], embedding["from_straight_line"], weights["lowest"]]
        + [embedding["middle"] - weights["middle"]]
    )
    assert [claim.unit for claim in found.claims] == ["points", "%", "points", "%", "points"]
    # Weak and strong instances are drawn with replacement, two of each, and a pair as often as both of its ends.
    first, second = (bootstrap.drawn(np.array(ids), seed) for seed, ids in enumerate(zip(*pairs, strict=True)))
    slow = {key: [] for key in found.numbers["intervals"]}
    for times in (first * second).astype(int):
        rows = np.repeat(np.arange(4), times)
        if not len(rows):
            continue
        curve, weight_curve = (np.mean([along[line][row] for row in rows], axis=0) for line in along)
        slow["largest_fall_of_mean"].append(max(curve[a] - curve[b] for a in range(5) for b in range(a, 5)))
        slow["monotone"].append(np.mean([falls[row] <= 0.02 for row in rows]))
        ends = [along["embedding"][row] for row in rows]
        off = [abs(one[k] - one[0] * (1 - k / 4) - one[-1] * k / 4) for one in ends for k in range(5)]
        slow["from_straight_line"].append(np.mean(off))
        slow["lowest"].append(min(weight_curve[1:-1]))
        slow["above_weights"].append(curve[2] - weight_curve[2])
    for key, values in slow.items():
        assert found.numbers["intervals"][key] == pytest.approx(np.quantile(values, [0.025, 0.975])), key
    assert [claim.interval for claim in found.claims] == [tuple(one) for one in found.numbers["intervals"].values()]
    assert len(found.tables[1].rows) == 5


def test_the_shape_of_lines_by_hand():
    values = torch.tensor([[0.2, 0.5, 0.48, 0.6], [0.4, 0.9, 0.87, 0.8]], dtype=torch.float64)
    targets = torch.tensor([[0.3, 0.6], [0.0, 0.9]], dtype=torch.float64)
    found = lines.shape_of_lines(values, targets, (0.0, 1 / 3, 2 / 3, 1.0))
    assert found["monotone"] == 0.5  # the first falls by 2 points, which is 0.02 and a little in floats
    assert found["largest_fall_of_mean"] == pytest.approx(0.025)  # 0.3, 0.7, 0.675, 0.7
    assert found["lowest"] == pytest.approx(0.675)
    assert found["middle"] == pytest.approx((0.7 + 0.675) / 2)  # 4 steps have none half-way
    assert found["from_line_between_targets"] == pytest.approx((0.1 + 0.1 + 0.02 + 0.0 + 0.4 + 0.6 + 0.27 + 0.1) / 8)


@pytest.mark.parametrize(
    ("rise", "shared", "verdicts"),
    [
        (0.5, False, ["held"] * 5),
        (0.019, False, ["not told"] * 3 + ["held", "not told"]),
        (-0.3, True, ["not told"] * 5),
        (0.5, True, ["held"] * 3 + ["not told"] * 2),
    ],
)
def test_a_flat_line_and_weights_of_one_start_tell_nothing(rise, shared, verdicts):
    embedding = {"rise_of_mean": rise, "largest_fall_of_mean": 0.0, "monotone": 1.0, "from_straight_line": 0.01}
    shapes = {"embedding": embedding | {"middle": 0.8}, "weights": {"lowest": 0.1, "middle": 0.1}}
    names = ("largest_fall_of_mean", "monotone", "from_straight_line", "lowest", "above_weights")
    claims = lines._claims(shapes, dict.fromkeys(names), shared)
    assert [claim.verdict for claim in claims] == verdicts
    if rise < 0.02:
        assert f"rises by {100 * rise:.1f} points from end to end" in claims[0].reason
    if shared:
        assert "share their starts" in claims[3].reason


def test_pairs_of_weak_and_strong_are_different_and_drawn(tmp_path):
    path = digits_zoo(tmp_path / "zoo", {"resnet8@digits": {"test": 9}}, teacher=False, single=True)
    zoo = prepkit.open_zoo(path)
    recorded = zoo.table["accuracy"].to_pylist()
    every = set(zip(*lines.weak_and_strong(zoo, recorded, 25, 0), strict=True))
    numbers = {tuple(int(id.rpartition("-")[2]) for id in pair) for pair in every}
    assert numbers == {(weak, strong) for weak in (0, 1, 2) for strong in (6, 7, 8)}
    some = list(zip(*lines.weak_and_strong(zoo, recorded, 3, 0), strict=True))
    assert len(set(some)) == len(some) == 3
    assert set(some) < every
    assert list(zip(*lines.weak_and_strong(zoo, recorded, 3, 1), strict=True)) != some
    with pytest.raises(PointError, match="has 1 test instance; a line between a weak and a strong one needs 2"):
        lines.weak_and_strong(zoo.select([0]), recorded[:1], 3, 0)
