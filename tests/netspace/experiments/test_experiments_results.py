"""Results of experiments: how they are saved and when they are computed again; split hygiene; the latent map."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from small_zoos import CHAIRS, DIGITS, digits_zoo
from untrained import untrained_run

import prepkit
from netspace import experiments
from netspace.experiments import (
    EXPERIMENTS,
    Experiment,
    UnknownExperiment,
    experiment_function,
    experiment_names,
    latent_map,
    running,
)
from netspace.experiments._subject import Subject
from netspace.experiments.beyond import hygiene
from netspace.experiments.result import (
    Claim,
    Column,
    Picture,
    Result,
    ResultError,
    Table,
    claim,
    table_of_measures,
)
from netspace.experiments.running import ExperimentRunner
from netspace.run.run import RunError, State
from prepkit.figures import new_figure
from prepkit.support import bootstrap
from prepkit.support.files import sha256_of_code

pytestmark = pytest.mark.usefixtures("one_thread")


# Results --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "relation", "limit", "held"),
    [
        (0.95, ">=", 0.95, True),
        (0.9499, ">=", 0.95, False),
        (3.0, "<=", 3, True),
        (3.1, "<=", 3, False),
        (0, "==", 0, True),
        (1, "==", 0, False),
        (2, ">", 2, False),
        (1.9, "<", 2, True),
        (math.nan, ">=", 0.0, False),
        (math.nan, "<=", 0.0, False),
    ],
)
def test_a_number_decides_a_claim(number, relation, limit, held):
    made = claim("Something", number, relation, limit)
    assert made.held is held
    assert made.bound == f"{relation} {limit:g}"


def test_a_result_comes_back_as_it_was(tmp_path):
    result = Result(
        "accuracy",
        "Accuracy",
        "Words, `code` and ü.",
        {"numpy": np.float32(0.5), "tensor": torch.arange(2), "none": math.nan, "deep": {"rows": [(1, np.int64(2))]}},
        [
            claim("A", np.float64(0.96), ">=", 0.95, interval=(np.float64(0.9), 1)),
            claim("B", 1, "==", 0, kind="check"),
            claim("C", 2, ">=", 1, untold="of one instance alone"),
        ],
        [Table("T", ("name", "value", "flag"), (("a", np.int64(3), True), ("b", math.inf, None)))],
        [Picture("P", "p.png")],
        {"seed": 0},
    )
    assert result.numbers == {"numpy": 0.5, "tensor": [0, 1], "none": None, "deep": {"rows": [[1, 2]]}}
    assert result.tables[0].rows == (("a", 3, True), ("b", None, None))
    assert Result.load(result.save(tmp_path)) == result
    assert [path.name for path in tmp_path.iterdir()] == ["accuracy.json"]
    # What was not found is null in the file, and not held.
    assert [one.verdict for one in Result.load(tmp_path / "accuracy.json").claims] == [
        "undecided",
        "not held",
        "not told",
    ]
    lost = replace(result, claims=[claim("A", math.nan, ">=", 0, interval=(math.nan, math.nan))])
    assert json.loads(lost.save(tmp_path).read_text())["claims"][0]["number"] is None
    (back,) = Result.load(tmp_path / "accuracy.json").claims
    assert np.isnan([back.number, *back.interval]).all()
    assert not back.held


def test_what_json_has_no_form_for_is_refused():
    with pytest.raises(ResultError, match=r"result 'a', numbers, x, \[1\]: a set has no form"):
        Result("a", "", "", {"x": [1, {2}]})
    with pytest.raises(ResultError, match="table 'T': 2 columns, a row of 1"):
        Result("a", "", "", tables=[Table("T", ("a", "b"), ((1,),))])


@pytest.mark.parametrize("file", ["../secret.png", "/etc/hosts", "a/b.png", "", 3])
def test_a_picture_is_a_file_of_the_same_folder(tmp_path, file):
    path = Result("a", "", "", pictures=[Picture("P", "p.png")]).save(tmp_path)
    document = json.loads(path.read_text())
    document["pictures"][0]["file"] = file
    path.write_text(json.dumps(document))
    with pytest.raises(ResultError, match="not a result"):
        Result.load(path)


def test_no_result_is_told(tmp_path):
    with pytest.raises(ResultError, match=r"missing\.json"):
        Result.load(tmp_path / "missing.json")
    (tmp_path / "cut.json").write_text('{"name": "a"')
    with pytest.raises(ResultError, match="Run the experiment again"):
        Result.load(tmp_path / "cut.json")


def test_a_table_of_measures():
    columns = (Column("share, %", "share", 100, 1), Column("number", "number"), Column("other", "other", digits=2))
    rows = {("a", 1): {"share": 0.12345, "number": 3, "other": math.nan}, ("b", 2): {"share": 1}}
    table = Result("r", "", "", tables=[table_of_measures("T", ("name", "id"), rows, columns)]).tables[0]
    assert table.columns == ("name", "id", "share, %", "number", "other")
    assert table.rows == (("a", 1, 12.3, 3, None), ("b", 2, 100.0, None, None))


def test_pictures_of_the_same_figure_have_the_same_bytes(tmp_path):
    subject = Subject(None, None, None, None, tmp_path)
    for name in ("a.png", "b.png"):
        figure = new_figure(2, 2)
        figure.subplots().plot([1, 2], [3, 4])
        assert subject.picture("P", name, figure) == Picture("P", name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_every_experiment_has_its_function():
    for name in experiment_names():
        assert callable(experiment_function(name))
        assert set(EXPERIMENTS[name].settings) <= set(experiments.ALL)
    with pytest.raises(UnknownExperiment, match="Did you mean 'accuracy'"):
        experiment_function("acuracy")
    assert "chairs" in experiment_names("sdf")
    assert "chairs" not in experiment_names("single")


# Running --------------------------------------------------------------------------------------------------------


class Counted:
    """An experiment that counts how often it runs."""

    def __init__(self):
        self.seeds, self.subjects = [], []

    def __call__(self, subject, *, factor=1):
        self.seeds.append(subject.seed)
        self.subjects.append(subject)
        subject.progress("counting")
        (subject.folder / "c.png").write_bytes(b"picture")
        numbers = {"instances": len(subject.zoo) * factor, "drawn": float(torch.rand(()))}
        return Result("counted", "C", "", numbers, pictures=[Picture("", "c.png")])


@pytest.fixture
def counted(monkeypatch):
    function = Counted()
    monkeypatch.setitem(EXPERIMENTS, "counted", Experiment("counted", ("single",)))
    monkeypatch.setattr(running, "experiment_function", lambda name: function)
    return function


@pytest.fixture
def run(tmp_path, small_zoo):
    return untrained_run(tmp_path / "run", "digits_single", small_zoo("digits_single"))


def test_an_experiment_is_made_once_for_a_state_a_seed_and_sizes(run, counted):
    before, told = torch.get_rng_state(), []
    first = ExperimentRunner(run, "cpu").result("counted", progress=told.append)
    assert told == ["counting"]
    assert torch.equal(torch.get_rng_state(), before)
    assert first.numbers["instances"] == 9
    assert first.stamp["checkpoint"] == {key: run.facts("best")[key] for key in ("step", "sha256")}
    assert first.stamp["zoo"] == run.record["zoo"]["sha256"]
    assert {"seconds", "hardware", "device", "versions"} <= set(first.stamp)
    assert ExperimentRunner(run, "cpu").result("counted") == first
    assert len(counted.seeds) == 1
    assert (
        ExperimentRunner(run, "cpu").result("counted", again=True).numbers == first.numbers
    )  # what is drawn follows the seed
    assert ExperimentRunner(run, "cpu", seed=3).result("counted").numbers["drawn"] != first.numbers["drawn"]
    runner = ExperimentRunner(run, "cpu", seed=3, sizes={"counted": {"factor": 2}})
    assert runner.result("counted").numbers["instances"] == 18
    assert counted.seeds == [0, 0, 3, 3]


def test_what_is_damaged_or_of_another_state_is_made_again(run, counted):
    runner = ExperimentRunner(run, "cpu")
    runner.result("counted")
    file = runner.folder / "counted.json"
    file.write_text(file.read_text()[:40])
    runner.result("counted")
    (runner.folder / "c.png").unlink()
    runner.result("counted")
    assert len(counted.seeds) == 3
    run.save("best", State(9, run.new_space().state_dict(), {"scores": {"score": 1.0}}))
    assert runner.result("counted").stamp["checkpoint"]["step"] == 9
    assert len(counted.seeds) == 4


def test_experiments_on_one_state_share_its_space_and_predictions(run, counted):
    runner = ExperimentRunner(run, "cpu")
    for _ in range(2):
        runner.result("counted", again=True)
    first, second = counted.subjects
    assert first.space is second.space
    assert first.predicted() is second.predicted()
    run.save("best", State(9, run.new_space().state_dict(), {"scores": {"score": 1.0}}))
    runner.result("counted")
    assert counted.subjects[2].space is not first.space
    runner.release()
    runner.result("counted", again=True)
    assert counted.subjects[3].space is not counted.subjects[2].space


def test_another_code_makes_an_experiment_again(run, counted, tmp_path, monkeypatch):
    runner = ExperimentRunner(run, "cpu")
    first = runner.result("counted")
    monkeypatch.setattr(running, "code_sum", lambda: "another")
    assert runner.saved("counted") is None
    assert runner.result("counted").numbers == first.numbers
    assert len(counted.seeds) == 2


def test_one_byte_of_code_in_either_package_changes_the_sum(tmp_path, monkeypatch):
    packages = [tmp_path / "netspace", tmp_path / "prepkit"]
    for copy, package in zip(packages, running.PACKAGES, strict=True):
        assert copy.name == package.name
        shutil.copytree(package, copy, ignore=shutil.ignore_patterns("*.toml", "__pycache__"))
    sums = [sha256_of_code(packages, running.LIBRARIES)]
    assert sums == [running.code_sum()]  # wherever the packages stand
    for file in ("prepkit/tasks/chairs.py", "netspace/experiments/accuracy.py", "netspace/space/network.py"):
        text = (tmp_path / file).read_bytes()
        (tmp_path / file).write_bytes(text.replace(b"e", b"a", 1))
        sums.append(sha256_of_code(packages, running.LIBRARIES))
    (tmp_path / "prepkit/tasks/new.py").touch()
    sums.append(sha256_of_code(packages, running.LIBRARIES))
    monkeypatch.setattr("importlib.metadata.version", lambda library: "9" if library == "torch" else "1")
    sums.append(sha256_of_code(packages, running.LIBRARIES))
    assert len(set(sums)) == len(sums)


def test_a_failed_experiment_leaves_no_result(run, counted, monkeypatch):
    runner = ExperimentRunner(run, "cpu")
    runner.result("counted")

    def fail(*_, **__):
        raise ValueError("broken")

    monkeypatch.setattr(running, "experiment_function", lambda name: fail)
    with pytest.raises(ValueError, match="broken"):
        runner.result("counted", again=True)
    assert runner.saved("counted") is None  # or half of its pictures might be of another one


def test_an_experiment_for_other_settings_is_refused(run):
    with pytest.raises(UnknownExperiment, match=r"'boundaries' is for the settings multi, unseen; .* has 'single'"):
        ExperimentRunner(run, "cpu").result("boundaries")


def test_a_run_without_a_best_state_has_nothing_to_judge(run):
    (run.path / "checkpoints" / "best.json").unlink()
    with pytest.raises(RunError, match="no best checkpoint yet"):
        ExperimentRunner(run, "cpu").result("hygiene")


# Split hygiene --------------------------------------------------------------------------------------------------


def test_a_clean_zoo_is_proved_clean(tmp_path, small_zoo):
    for name, kinds in (("digits_multi", {"id", "values", "images"}), ("chairs_mini", {"id", "item", "values"})):
        run = untrained_run(tmp_path / name, name, small_zoo(name))
        result = ExperimentRunner(run, "cpu").result("hygiene")
        assert set(result.numbers["shared"]) == kinds
        assert all(set(of.values()) == {0} for of in result.numbers["shared"].values())
        assert [one.held for one in result.claims] == [True]


def test_every_leak_is_counted(tmp_path):
    """One instance is in train and test under two ids; one run and seed gave a training and a test instance."""
    torch.manual_seed(0)
    registry = prepkit.Registry([prepkit.architecture("resnet8@digits")])
    rows = [("a", "train", "r0", 1), ("b", "train", "r1", 2), ("c", "validation", "r2", 3), ("d", "test", "r3", 4)]
    with prepkit.ZooWriter(tmp_path / "zoo", width=128, task=DIGITS, registry=registry) as writer:
        networks = [registry.by_class_id(0).build() for _ in rows]
        for (id, split, made_by, seed), network in zip(rows, networks, strict=True):
            writer.add(network, id=id, split=split, run=made_by, seed=seed)
        writer.add(networks[0], id="a-again", split="test", run="r4", seed=5)
        writer.add(registry.by_class_id(0).build(), id="e", split="test", run="r1", seed=2)
        writer.add(registry.by_class_id(0).build(), id="f", split="test", run="r2", seed=6)
    run = untrained_run(tmp_path / "run", "digits_single", tmp_path / "zoo")
    result = ExperimentRunner(run, "cpu").result("hygiene")
    assert "does not record" not in result.text
    none, train = {"train": 0, "validation": 0}, {"train": 1, "validation": 0}
    shared = {"id": none, "run": {"train": 1, "validation": 1}, "seed": train, "values": train, "images": none}
    assert result.numbers["shared"] == shared
    assert [(one.number, one.held) for one in result.claims] == [(4, False)]
    rows = {row[0]: row[1:] for row in result.tables[0].rows}
    assert rows["training runs"] == (4, 1, 1)


def test_images_that_chose_the_best_state_count(tmp_path):
    """Without validation images the best state is chosen on test images."""
    task = {"kind": "images", "dataset": "digits", "split": {"seed": 0, "test": 60}}
    counts = {"resnet8@digits": {"train": 2, "validation": 1, "test": 1}}
    zoo = digits_zoo(tmp_path / "zoo", counts, teacher=False, single=True, task=task)
    result = ExperimentRunner(untrained_run(tmp_path / "run", "digits_single", zoo), "cpu").result("hygiene")
    assert result.numbers["shared"]["images"]["validation"] == result.tables[0].rows[-1][1] > 50
    assert not result.claims[0].held
    assert "does not record training runs, seeds" in result.text


def test_shapes_that_were_seen_are_counted(tmp_path):
    registry = prepkit.Registry([prepkit.architecture("sine_mlp@sdf_small")])
    with prepkit.ZooWriter(tmp_path / "zoo", width=64, task=CHAIRS, registry=registry) as writer:
        for id, split, item in (("a", "train", 0), ("b", "train", 1), ("c", "test", 1), ("d", "test", 2)):
            writer.add(registry.by_class_id(0).build(), id=id, split=split, item=item)
    result = ExperimentRunner(untrained_run(tmp_path / "run", "chairs_mini", tmp_path / "zoo"), "cpu").result("hygiene")
    assert result.numbers["shared"]["item"] == {"train": 1, "validation": 0}
    assert not result.claims[0].held


def test_an_unseen_architecture_that_was_chosen_by_is_found(tmp_path, small_zoo):
    run = untrained_run(tmp_path / "run", "digits_unseen", small_zoo("digits_unseen"))
    clean = hygiene.between_boundaries(run, prepkit.open_zoo(small_zoo("digits_unseen")))
    counts = {"lenet_like@digits": {"train": 1}, "resnet8@digits": {"validation": 1, "test": 1}}
    assert clean == []
    assert hygiene.between_boundaries(run, prepkit.open_zoo(digits_zoo(tmp_path / "zoo", counts, height=88))) == [
        "resnet8@digits-validation-0"
    ]


# The latent map -------------------------------------------------------------------------------------------------


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
