"""The latent map: clusters, their intervals, and what is drawn of them."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from small_zoos import digits_zoo
from untrained import untrained_run

from netspace.experiments import (
    latent_map,
)
from netspace.experiments.result import (
    Claim,
)
from netspace.experiments.running import ExperimentRunner
from prepkit.support import bootstrap

pytestmark = pytest.mark.usefixtures("one_thread")


def test_clusters_by_the_boundary_line():
    """The line goes from (1, 1) to (1, 5): its length is 4."""
    groups = {
        "a": torch.tensor([[0.0, 1], [2, 1]]).double(),
        "b": torch.tensor([[2.0, 2], [4, 4]]).double(),
        "c": torch.tensor([[1.0, 5]]).double(),
    }
    found = latent_map.clusters(groups)
    places = [(one["instances"], one["position"], one["off"]) for one in found["by_architecture"].values()]
    assert places == [(2, 0, 0), (2, 0.5, 0.5), (1, 1, 0)]
    spread = [one["spread"] for one in found["by_architecture"].values()]
    assert spread[:2] == pytest.approx([0, math.sqrt(2) / 4])  # positions 0.25 and 0.75
    assert math.isnan(spread[2])
    assert (found["smallest_step"], found["largest_distance"]) == (0.5, 0.5)
    position, off = latent_map.by_line(groups["b"], groups)
    assert position.tolist() == [0.25, 0.75]
    assert off.tolist() == [0.25, 0.75]
    ranks, positions = [0, 0, 1, 1, 2], [0, 0, 0.25, 0.75, 1]
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(ranks, positions).statistic)
    assert [one.held for one in latent_map.claims_on_clusters(found)] == [True, False]
    text = latent_map.text_on_clusters(list(groups), found)
    assert "lie at 0%, 50%, 100% of its length (in equal steps: 0%, 50%, 100%), so they are sorted by ClassId" in text
    assert "up to 50% of its length off the line" in text
    assert text.endswith("so ClassIds may be sorted along a line while clusters are not.")
    with_loss = latent_map.text_on_clusters(list(groups), found, has_line_loss=True)
    assert with_loss.endswith("on the line between the centres of the boundary architectures, in equal steps.")
    assert [row[3:] for row in latent_map.table_of_clusters(found).rows[:2]] == [(0, 0, 0, 0), (50, 50, 35.4, 50)]


def test_clusters_out_of_order_and_in_one_place():
    one = {name: torch.tensor([[at, 0.0]]).double() for name, at in (("a", 0), ("b", 12), ("c", 10))}
    found = latent_map.clusters(one)
    assert found["smallest_step"] == pytest.approx(-0.2)
    assert [one.held for one in latent_map.claims_on_clusters(found)] == [False, True]
    assert "so they are not sorted by ClassId" in latent_map.text_on_clusters(list(one), found)
    found = latent_map.clusters(dict.fromkeys(one, torch.ones(2, 3).double()))
    assert not any(one.held for one in latent_map.claims_on_clusters(found))


def test_intervals_of_clusters_are_those_of_drawn_instances():
    random = torch.Generator().manual_seed(3)
    centres = (([0.0] * 9), ([4.0] + [0.0] * 8), ([9.0] + [0.0] * 8))
    groups = {
        name: torch.tensor(centre).double() + torch.randn(size, 9, generator=random).double()
        for name, size, centre in zip("abc", (4, 3, 4), centres, strict=True)
    }
    runs = [list("aabc"), list("def"), list("ghij")]  # two instances are of one run
    draws = [bootstrap.drawn(np.array(own), 5 + number) for number, own in enumerate(runs)]
    slow = []
    for times in zip(*draws, strict=True):
        drawn = {
            name: groups[name][torch.from_numpy(np.repeat(np.arange(len(own)), own.astype(int)))]
            for name, own in zip(groups, times, strict=True)
        }
        found = latent_map.clusters(drawn)
        slow.append((found["smallest_step"], found["largest_distance"]))
    expected = np.quantile(slow, [0.025, 0.975], axis=0).T
    found = latent_map.cluster_intervals(groups, runs, 5)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    claims = latent_map.claims_on_clusters(latent_map.clusters(groups), found)
    assert [one.interval for one in claims] == list(found)
    assert np.isnan(latent_map.cluster_intervals(groups, [["a"] * 4, *runs[1:]], 5)).all()


def test_the_boundary_line_asks_for_all_architectures():
    assert latent_map.has_line(["a", "b", "c"], ("a", "b", "c"))
    assert not latent_map.has_line(["a", "c"], ("a", "b", "c"))
    assert not latent_map.has_line(["a", "b"], ("a", "b"))


def test_clusters_are_those_of_test_instances(tmp_path):
    names = ("lenet_like@digits", "vanilla_cnn@digits", "resnet8@digits", "resnet14@digits")
    counts = {"train": 2, "validation": 1, "test": 3}
    path = digits_zoo(tmp_path / "zoo", dict.fromkeys(names, counts), height=88)
    run = untrained_run(tmp_path / "run", "digits_multi", path)
    result = ExperimentRunner(run, "cpu").result("latent_map")
    space, test = run.space(), run.open_zoo().split("test")
    own = {name: [] for name in names}
    for row in range(len(test)):
        with torch.no_grad():
            own[test.metadata(row)["architecture"]].append(space.encode(test.preps([row]))[0].double().numpy())
    centres = [np.mean(own[name], axis=0) for name in names]
    length = np.linalg.norm(centres[3] - centres[0])
    unit = (centres[3] - centres[0]) / length
    for name, centre in zip(names, centres, strict=True):
        found = result.numbers["clusters"]["by_architecture"][name]
        along = (centre - centres[0]) @ unit
        assert found["instances"] == 3
        assert found["position"] == pytest.approx(along / length, abs=1e-4)
        off = math.sqrt(max(0.0, np.linalg.norm(centre - centres[0]) ** 2 - along**2)) / length
        assert found["off"] == pytest.approx(off, abs=1e-3)
        each = [(one - centres[0]) @ unit / length for one in own[name]]
        assert found["spread"] == pytest.approx(np.std(each, ddof=1), rel=1e-2)
    numbers = [result.numbers["clusters"][key] for key in ("smallest_step", "largest_distance")]
    assert [one.number for one in result.claims[1:]] == numbers
    assert [one.unit for one in result.claims] == ["%", "%", "%"]
    assert len(result.tables[0].rows) == 4


def test_a_space_of_two_architectures_has_no_order_of_clusters(tmp_path, small_zoo):
    run = untrained_run(tmp_path / "run", "digits_unseen", small_zoo("digits_unseen"))
    result = ExperimentRunner(run, "cpu").result("latent_map")
    assert "clusters" not in result.numbers
    assert len(result.claims) == 1
    assert "is not measured here" in result.text
    assert "there are only those of lenet_like, resnet14" in result.text


def test_thumbnails_are_spread_over_accuracies():
    accuracies = [0.5, 0.1, math.nan, 0.9, 0.3, 0.2, 0.7, 0.6, 0.8]
    two = latent_map.thumbnails(["b", "b", "a", "b", "b", "a", "a", "a", "a"], accuracies)
    assert list(two) == ["b", "a"]
    assert [accuracies[index] for index in two["b"]] == [0.1, 0.3, 0.5, 0.9]
    chosen = latent_map.thumbnails(["a"] * 9, accuracies)["a"]
    assert len(chosen) == latent_map.THUMBNAILS
    assert (chosen[0], chosen[-1]) == (1, 2)  # what has none comes last


@pytest.mark.parametrize("name", ["digits_single", "digits_multi", "chairs_mini"])
def test_the_map_of_a_run(tmp_path, small_zoo, name):
    result = ExperimentRunner(untrained_run(tmp_path / "run", name, small_zoo(name)), "cpu").result("latent_map")
    assert 0 < sum(result.numbers["explained"]) <= 1 + 1e-9
    assert ("nearest_own" in result.numbers) is (name == "digits_multi")
    for picture in result.pictures:
        assert (tmp_path / "run" / "experiments" / picture.file).read_bytes().startswith(b"\x89PNG")
    assert isinstance(result.claims, tuple)
    assert all(isinstance(one, Claim) for one in result.claims)
