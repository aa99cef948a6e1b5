"""The paper in one call, at a tiny size: every stage, what is gone on with, and what is refused."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

import prepkit
from netspace import experiments
from netspace.cli import main
from netspace.cli.report import stage_text
from netspace.experiments import EXPERIMENTS, running
from netspace.recipe import load_recipe
from netspace.report import paper as paper_module
from netspace.report.model import StageProgress
from netspace.report.paper import ABLATIONS, EASIER, RECIPES, SIZES, PaperError, Size, paper, recipes_of, zoo_names
from netspace.run.run import Run
from netspace.training.trainer import Interrupted
from prepkit.training._values import Epochs

pytestmark = pytest.mark.usefixtures("one_thread", "undrawn_cards")

TRAINED = ("digits_multi", "chairs_mini")
TINY = Size(
    "Tiny",
    zoos={"digits_multi": {"instances": 2, "epochs": 1}, "chairs_mini": {"instances": 2, "epochs": 1}},
    recipes={
        "digits_multi": {"training.steps": 3, "training.validate_every": 2, "batch.samples": 16},
        "chairs_mini": {"training.steps": 2, "training.validate_every": 2, "batch.samples": 32, "batch.instances": 2},
    },
)


@pytest.fixture
def tiny(monkeypatch):
    """Two of the settings, a size of seconds, and the experiments that need no training to say something."""
    monkeypatch.setattr(paper_module, "RECIPES", TRAINED)
    monkeypatch.setitem(SIZES, "quick", TINY)
    kept = {name: EXPERIMENTS[name] for name in ("latent_map", "hygiene")}
    for module in (experiments, running):
        monkeypatch.setattr(module, "EXPERIMENTS", kept)
    train_zoo = prepkit.train_zoo

    def with_a_short_teacher(name, path, **options):  # whose own epochs, which no size changes, take most of the time
        spec = prepkit.load_spec(name)
        if spec.teacher is not None:
            training = replace(spec.teacher.training, epochs=Epochs((1,)))
            spec = replace(spec, teacher=replace(spec.teacher, training=training))
        return train_zoo(spec, path, **options)

    monkeypatch.setattr(prepkit, "train_zoo", with_a_short_teacher)


def test_all_of_it_and_again(tmp_path, tiny, monkeypatch):
    """One call does all; a second one does nothing again; a training and a zoo that were interrupted go on."""
    told = []
    found = paper(tmp_path / "out", "quick", device="cpu", progress=told.append)
    assert found.failures == []
    assert [(one.run.recipe.name, [*one.results]) for one in found.runs] == [
        (name, ["latent_map", "hygiene"]) for name in TRAINED
    ]
    assert [one.verdicts for one in found.claims if one.experiment == "hygiene"] == [("held",)] * 2
    # Every stage is told once, in order, with what comes after it.
    stages = list(dict.fromkeys((one.number, one.total, one.stage) for one in told))
    assert [stage[0] for stage in stages] == list(range(1, 9))
    assert [stage[2] for stage in stages[:5]] == [
        "zoo digits_multi",
        "zoo chairs_mini",
        "training digits_multi",
        "training chairs_mini",
        "latent_map of digits_multi",
    ]
    assert {stage[1] for stage in stages} == {8}
    assert told[0].remaining == "1 zoo, 2 trainings, 4 experiments, the page"
    assert told[-1].remaining == "the page"
    assert any("2 of 2 steps, loss " in one.text for one in told)
    assert any("instances" in one.text for one in told)
    for name in ("report.html", "report.md", "report.json"):
        assert (tmp_path / "out" / name).stat().st_size > 1000
    run = Run(tmp_path / "out" / "runs" / "digits_multi")
    assert run.recipe.training.steps == 3
    assert len(run.open_zoo()) == 4 * 3 * 2
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.safetensors")}

    # Nothing is left to be done: not a zoo, not a training, not an experiment.
    monkeypatch.setattr(prepkit, "train_zoo", None)
    monkeypatch.setattr(paper_module, "train", None)
    again = paper(tmp_path / "out", "quick", device="cpu")
    assert [one.results for one in again.runs] == [one.results for one in found.runs]
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.safetensors")} == before
    monkeypatch.undo()


def test_what_is_left_is_done(tmp_path, tiny, monkeypatch):
    """A folder whose second training was interrupted, and a run that was killed before it had a record."""
    train, cut = paper_module.train, replace(TINY, recipes={**TINY.recipes})
    monkeypatch.setitem(SIZES, "quick", cut)
    monkeypatch.setattr(paper_module, "RECIPES", ("digits_multi",))
    trained = []

    def interrupted(recipe, zoo, path, **settings):
        trained.append((path.name, settings["resume"]))
        run = train(replace(recipe, training=replace(recipe.training, steps=2)), zoo, path, **settings)
        run.note("recipe", recipe.to_dict())
        raise Interrupted("interrupted after step 2")

    unborn = tmp_path / "out" / "runs" / "digits_multi"
    paper_module.begin(tmp_path / "out", "quick")
    (unborn / "checkpoints").mkdir(parents=True)
    monkeypatch.setattr(paper_module, "train", interrupted)
    done = CliRunner().invoke(main, ["paper", str(tmp_path / "out"), "--quick", "--device", "cpu"])
    assert done.exit_code == 130
    assert "The same command goes on" in done.stderr
    monkeypatch.setattr(prepkit, "train_zoo", None)  # the zoo is whole
    monkeypatch.setattr(paper_module, "train", lambda *a, **k: trained.append(k["resume"]) or train(*a, **k))
    done = CliRunner().invoke(main, ["paper", str(tmp_path / "out"), "--quick", "--device", "cpu", "--json"])
    assert done.exit_code == 0, done.stderr
    assert trained == [("digits_multi", False), True]
    assert json.loads(done.stdout)["runs"][0]["recipe"] == "digits_multi"
    assert Run(unborn).facts("latest")["step"] == 3

    # What is there but is something else is never taken for what is wanted.
    other = replace(cut, zoos={"digits_multi": {"instances": 3, "epochs": 1}})
    monkeypatch.setitem(SIZES, "quick", other)
    with pytest.raises(PaperError, match="not the zoo of spec 'digits_multi' at this size"):
        paper(tmp_path / "out", "quick")
    monkeypatch.setitem(SIZES, "quick", replace(cut, recipes={"digits_multi": {"training.steps": 4}}))
    with pytest.raises(PaperError, match="trained with another recipe"):
        paper(tmp_path / "out", "quick")
    with pytest.raises(PaperError, match="begun in the size 'quick', and 'mini' was asked for"):
        paper(tmp_path / "out", "mini")


def test_a_folder_of_others_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    done = CliRunner().invoke(main, ["paper", str(tmp_path / "both"), "--quick", "--full"])
    assert done.exit_code == 2
    assert "two sizes" in done.stderr
    done = CliRunner().invoke(main, ["paper", str(tmp_path), "--quick", "--json"])
    assert done.exit_code == 2
    assert "was not begun by this command" in json.loads(done.stdout)["error"]["message"]
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "paper.json").write_text("{")
    with pytest.raises(PaperError, match=r"paper\.json: damaged, or of another version; name a new folder"):
        paper(tmp_path, "mini")
    (tmp_path / "paper.json").write_text(json.dumps({"format": "netspace-paper/1", "size": "quick"}) + "\n")
    with pytest.raises(PaperError, match="was begun in the size 'quick', and 'mini' was asked for; ask for the first"):
        paper(tmp_path, "mini")
    with pytest.raises(PaperError, match="unknown size 'huge'; use one of quick, mini, full"):
        paper(tmp_path / "new", "huge")


def test_what_is_missing_is_told_first(tmp_path, monkeypatch):
    monkeypatch.setattr(paper_module, "find_spec", lambda name: None if name == "skimage" else name)
    with pytest.raises(PaperError, match=r"need scikit-image; pip install 'prepkit\[train,plots\]'"):
        paper(tmp_path / "out", "quick")
    assert not (tmp_path / "out").exists()


def test_sizes_name_what_there_is():
    for size in SIZES.values():
        recipes = recipes_of(size)
        assert set(size.zoos) <= set(zoo_names(recipes))
        assert set(size.recipes) <= set(RECIPES)
        assert set(size.experiments) <= set(EXPERIMENTS)
    assert list(recipes_of(SIZES["quick"])) == list(RECIPES)
    assert list(recipes_of(SIZES["mini"])) == [*RECIPES, *EASIER]
    assert all(recipe == load_recipe(name) for name, recipe in recipes_of(SIZES["mini"]).items())
    full = recipes_of(SIZES["full"])
    assert len(full) == 3 * len((*RECIPES, *EASIER, "digits_single_strong")) + len(ABLATIONS)
    starts = {name: [each.start.kind for each in prepkit.load_spec(name).training.values()] for name in zoo_names(full)}
    assert {name for name, kinds in starts.items() if "own" not in kinds} == set(EASIER)
    assert {full[name].training.seed for name in full if name.startswith("digits_unseen")} == {0, 1, 2}
    assert full["chairs_mini-seed-2"] == load_recipe("chairs_mini", {"training.seed": 2})


def test_sizes_of_experiments_are_settings_of_their_functions():
    import inspect

    from netspace.experiments import experiment_function

    for size in SIZES.values():
        for name, settings in size.experiments.items():
            assert set(settings) <= set(inspect.signature(experiment_function(name)).parameters)


def test_the_line_says_what_runs_and_what_is_left():
    doing = StageProgress("training digits_multi", 3, 41, "step 300/1500", "36 experiments, the page")
    assert stage_text(doing, 130.4) == (
        "[ 3/41] 02:10 training digits_multi: step 300/1500 | then: 36 experiments, the page"
    )
    assert stage_text(StageProgress("hygiene of run", 41, 41), 0) == "[41/41] 00:00 hygiene of run"
