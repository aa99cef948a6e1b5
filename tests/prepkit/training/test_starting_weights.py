"""Starts that instances share: how they are dealt, drawn, read and fitted, and that trainings begin with them."""

import hashlib
import pickle
from dataclasses import replace

import pytest
import torch
from folder_contents import files_of
from killed_training import CHAIRS
from spec_samples import TEXT, spec, trained
from stack_samples import Noise, jobs, setting, training, worst
from torch.nn.functional import cross_entropy, mse_loss

import prepkit
from prepkit.errors import ZooError
from prepkit.tasks import load_task
from prepkit.tasks._shapes import ShapeTask
from prepkit.training import _units as units
from prepkit.training import run as running
from prepkit.training._engine import choose_engine
from prepkit.training._plan import plan
from prepkit.training._provenance import versions
from prepkit.training._ray import train_remotely
from prepkit.training._stack import Stack
from prepkit.training._start import Start
from prepkit.training._start_tensors import drawn_start, start_seed, starts_of
from prepkit.training._units import fits_of, train_unit
from prepkit.training.run import train_zoo
from prepkit.training.spec import load_spec, parse_spec
from prepkit.zoo.card._starts import sentences_on_starts

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
LENET, RESNET, SINE = "lenet_like@digits", "resnet8@digits", "sine_mlp@sdf_small"
FITTED = CHAIRS.replace('keep = "last"', 'keep = "last"\nstart = {fitted = 12}')  # two epochs of five steps, and two
SHARED = FITTED.replace("{fitted = 12}", "{shared = 2}")


def sha256(tensors):
    """The sum that provenance has, written again."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].numpy()
        digest.update(f"{name} torch.{array.dtype} {list(array.shape)}\n".encode() + array.tobytes())
    return digest.hexdigest()


# The key ------------------------------------------------------------------------------------------------------


def test_what_the_key_says(tmp_path):
    assert trained("").training[LENET].start == Start()
    assert trained('start = "own"').training[LENET].start == Start()
    assert trained("start = {shared = 3}").training[RESNET].start.names == ("shared-0", "shared-1", "shared-2")
    (tmp_path / "x.toml").write_text(trained('start = {file = "s/a.pt"}').text)
    assert load_spec(tmp_path / "x.toml").training[LENET].start.file == str(tmp_path / "s" / "a.pt")
    assert parse_spec(FITTED, "x.toml").training[SINE].start == Start("fitted", steps=12)
    assert parse_spec(FITTED, "x.toml").with_sizes(epochs=1).training[SINE].start.steps == 4
    own = spec(("epochs = {low = 2, high = 4}", "epochs = 3\nstart = {shared = 5}"))
    assert [own.training[name].start.kind for name in (LENET, RESNET)] == ["own", "shared"]
    assert trained("start = {shared = 3}").teacher.training.start == Start()


CHOICES = 'start: expected "own", {shared = 4}, {fitted = 2000} or {file = "start.pt"}; found '
MISTAKES = [
    ("start = 'owns'", f"{CHOICES}'owns'."),
    ("start = {}", f"{CHOICES}{{}}."),
    ("start = {shared = 1, fitted = 2}", f"{CHOICES}{{'shared': 1, 'fitted': 2}}."),
    ("start = {shard = 1}", "start: unknown key 'shard'; known are shared, fitted, file. Did you mean 'shared'?"),
    ("start = {shared = 0}", "start.shared: expected a whole number from 1 to 10,000; found 0."),
    ("start = {fitted = 0}", "start.fitted: expected a whole number from 1 to 10,000,000; found 0."),
    ("start = {file = 3}", "start.file: expected one line of text; found 3."),
    ("start = {fitted = 9}", "start.fitted: needs a task in which each instance has an item of its own, which is of"),
]


@pytest.mark.parametrize(("line", "message"), MISTAKES)
def test_a_mistake_is_told_with_its_place(line, message):
    with pytest.raises(ZooError) as caught:
        trained(line)
    assert str(caught.value).startswith(f"small.toml, training.{message}")


def test_a_start_is_fitted_to_training_instances_and_is_none_of_a_teacher():
    with pytest.raises(ZooError, match=r"x\.toml, training\.start\.fitted: is fitted .* sine_mlp@sdf_small has .* t"):
        parse_spec(FITTED.replace("train = 2, test = 1", "test = 3"), "x.toml")
    with pytest.raises(ZooError, match=r'small\.toml, teacher\.start: expected "own", as other starts are for instanc'):
        spec(("epochs = 12", "epochs = 12\nstart = {shared = 1}"))


# Dealing ------------------------------------------------------------------------------------------------------


def test_starts_are_dealt_out_evenly_and_change_no_other_draw():
    text = TEXT.replace("train = 5", "train = 9").replace("epochs = 30", "epochs = 30\nstart = {shared = 3}")
    whole = plan(parse_spec(text, "x.toml"))
    dealt = [job.start for job in whole.by_architecture[RESNET]]
    for turn in range(0, 9, 3):
        assert sorted(dealt[turn : turn + 3]) == ["shared-0", "shared-1", "shared-2"]
    assert len({tuple(dealt[turn : turn + 3]) for turn in range(0, 9, 3)}) > 1
    assert whole.teacher.start == "own"
    without = plan(parse_spec(text.replace("{shared = 3}", '"own"'), "x.toml"))
    assert tuple(replace(job, start="own") for job in whole.jobs) == without.jobs
    trial = plan(parse_spec(text, "x.toml").with_sizes(instances=1)).by_architecture[RESNET]
    assert [job.start for job in trial] == dealt[: len(trial)]


def test_shared_starts_differ_by_number_architecture_and_seed():
    found = trained("start = {shared = 2}")
    seeds = {start_seed(found, start, name) for start in ("shared-0", "shared-1", "fitted") for name in (LENET, RESNET)}
    assert len(seeds | {start_seed(replace(found, seed=4), "shared-0", LENET)}) == 7
    before = torch.get_rng_state()
    starts = starts_of(found)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(start_seed(found, "shared-1", RESNET))
    expected = prepkit.architecture(RESNET).build().state_dict()
    assert starts[RESNET]["shared-1"].keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in starts[RESNET]["shared-1"].items())


# Stacks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [True, False])
def test_a_stack_equals_a_plain_loop_that_begins_with_the_start(together):
    """Two instances from a shared start, with BatchNorm and running statistics that are not fresh; one from its own."""
    known, own = prepkit.architecture(RESNET), training()
    start = {name: t + 0.1 if t.is_floating_point() else t for name, t in drawn_start(known, 5).items()}
    named = zip(jobs(RESNET, 3, epochs=(2,)), ("shared-0", "own", "shared-0"), strict=True)
    all_jobs = [replace(job, start=name) for job, name in named]
    common = replace(setting(RESNET, own, stacked=together), starts={"shared-0": start})
    for batch in [all_jobs] if together else [[job] for job in all_jobs]:
        stack = Stack(common, batch)
        stack.run()
        for shot in stack.snapshots:
            job = batch[shot.position]
            torch.manual_seed(job.seed)
            network = known.build().double().train()
            if job.start != "own":
                network.load_state_dict({name: tensor.double() for name, tensor in start.items()}, strict=False)
            settings = {"lr": job.learning_rate, "momentum": job.momentum, "weight_decay": job.weight_decay}
            optimiser = torch.optim.SGD(network.parameters(), **settings)
            for epoch in range(2):
                for step in range(Noise.steps):
                    images, labels = Noise().batch(job.seed, epoch, step)
                    optimiser.zero_grad()
                    cross_entropy(network(images), labels).backward()
                    optimiser.step()
            tracked = {n: t for n, t in network.state_dict().items() if n.endswith("num_batches_tracked")}
            assert worst({**shot.tensors, **tracked}, network.state_dict()) < 1e-9


# Fitting ------------------------------------------------------------------------------------------------------


def fitted(text=FITTED, **changes):
    """The tensors of a start that is fitted alone, with its unit and task."""
    found = parse_spec(text, "x.toml")
    jobs, task = plan(found), load_task(found.task)
    (unit,) = fits_of(found, jobs, task, 9)
    engine = choose_engine(found, jobs, CPU, None, 1)
    tensors = train_unit(replace(unit, **changes), task, engine, CPU).rows.tensors
    return {name: tensor[0] for name, tensor in tensors.items()}, unit, task


def test_a_fitted_start_is_that_of_a_plain_loop_over_points_of_all_training_shapes():
    found, unit, task = fitted()
    (job,) = unit.jobs
    assert unit.fit.items == tuple(j.item for j in plan(parse_spec(FITTED, "x.toml")).jobs if j.split == "train")
    torch.manual_seed(job.seed)
    network = prepkit.architecture(SINE).build()
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    steps = 0
    for epoch in range(3):
        seeds = [units.TaskOfAll(task, unit.fit).seed_of(job.seed, item) for item in unit.fit.items]
        for batch in task.batches(seeds, unit.fit.items, epoch, 32):
            if steps == 12:
                break
            steps += 1
            optimiser.zero_grad()
            mse_loss(network(batch.inputs.reshape(-1, 3)), batch.targets.reshape(-1, 1)).backward()
            optimiser.step()
    assert worst(found, network.state_dict()) < 1e-4
    assert unit.work(task) == pytest.approx(12 / 5 * replace(unit, fit=None, jobs=(replace(job, epochs=1),)).work(task))


def test_a_worker_fits_the_same_start_and_gives_it_to_instances_that_are_sent():
    start, unit, task = fitted()
    found = parse_spec(FITTED, "x.toml")
    engine = choose_engine(found, plan(found), CPU, None, 1)
    rows = train_remotely(pickle.loads(pickle.dumps(unit)), task, engine, versions()).rows
    assert sha256({name: tensor[0] for name, tensor in rows.tensors.items()}) == sha256(start)
    (instances,) = units.units_of(found, plan(found), engine)
    ready = replace(instances, starts={"fitted": start})
    here = train_unit(ready, task, engine, CPU).rows
    there = train_remotely(pickle.loads(pickle.dumps(ready)), task, engine, versions()).rows
    assert here.columns == there.columns
    assert all(torch.equal(tensor, there.tensors[name]) for name, tensor in here.tensors.items())


def test_a_change_of_a_test_shape_changes_nothing_of_the_start(monkeypatch):
    before, unit, _ = fitted()
    (held_out,) = {0, 1, 2} - set(unit.fit.items)
    changed = []
    make_room = ShapeTask._make_room

    def spoiled(task, wanted, missing):
        make_room(task, wanted, missing)
        for item in set(changed) & set(task._slots):
            task._rows[task._slots[item]] = 0.25

    monkeypatch.setattr(ShapeTask, "_make_room", spoiled)
    changed.append(held_out)
    assert sha256(fitted()[0]) == sha256(before)
    changed.append(unit.fit.items[0])
    assert sha256(fitted()[0]) != sha256(before)


# Zoos ---------------------------------------------------------------------------------------------------------


def zoo_of(text, folder, **options):
    train_zoo(parse_spec(text, "x.toml"), folder, **{"device": "cpu", "threads": 1, **options})
    return prepkit.open_zoo(folder)


class Killed(BaseException):
    pass


@pytest.mark.parametrize(("text", "kills"), [(FITTED, {2, 5, 8}), (SHARED, {2, 3})])
def test_a_zoo_from_starts_is_the_same_after_kills_and_stacked_or_not(tmp_path, monkeypatch, text, kills):
    """A fitted start is killed in its second epoch; all other kills hit the instances."""
    straight = zoo_of(text, tmp_path / "straight")
    train_epoch = Stack._train_epoch
    begun = []

    def stop(stack):
        begun.append(1)
        if len(begun) in kills:
            raise Killed
        return train_epoch(stack)

    with monkeypatch.context() as patch:
        patch.setattr(Stack, "_train_epoch", stop)
        patch.setattr(units, "SAVE_SECONDS", 0.0)
        for _ in kills:
            with pytest.raises(Killed):
                zoo_of(text, tmp_path / "killed")
        zoo_of(text, tmp_path / "killed")
    assert len(begun) == len(kills) + (6 if text == FITTED else 3)  # no epoch that was finished is trained again
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "straight")
    alone = zoo_of(text, tmp_path / "alone", stack=1)
    order = [alone.table["id"].to_pylist().index(id) for id in straight.table["id"].to_pylist()]
    assert torch.allclose(straight.preps(), alone.preps()[order], atol=1e-4)
    facts, others = (each.manifest.provenance["starts"] for each in (straight, alone))
    assert facts == others


def test_the_table_and_provenance_tell_the_starts(tmp_path):
    zoo = zoo_of(FITTED, tmp_path / "fitted")
    assert set(zoo.table["start"].to_pylist()) == {"fitted"}
    start = fitted()[0]
    facts = {"steps": 12, "items": 2, "sha256": sha256(start)}
    assert zoo.manifest.provenance["starts"] == {SINE: {"fitted": facts}}
    card = (tmp_path / "fitted" / "README.md").read_text()
    assert "begin with one network that was fitted in 12 steps to the items of all 2 training instances at once" in card
    zoo = zoo_of(SHARED, tmp_path / "shared")
    jobs = {job.run: job.start for job in plan(parse_spec(SHARED, "x.toml")).jobs}
    assert dict(zip(zoo.table["id"].to_pylist(), zoo.table["start"].to_pylist(), strict=True)) == jobs
    found = starts_of(parse_spec(SHARED, "x.toml"))
    sums = {name: {start: {"sha256": sha256(of)} for start, of in own.items()} for name, own in found.items()}
    assert zoo.manifest.provenance["starts"] == sums
    assert (
        "Instances of sine_mlp@sdf_small begin with 2 random starts, dealt out."
        in sentences_on_starts(zoo.manifest.provenance)[0]
    )


def test_a_divergence_of_the_fit_is_told_and_tried_again(tmp_path, monkeypatch):
    (unit,) = fits_of(parse_spec(FITTED, "x.toml"), plan(parse_spec(FITTED, "x.toml")), fitted()[2], 9)
    bad, train_epoch = unit.jobs[0].seed, Stack._train_epoch

    def poisoned(stack):
        return [float("nan") if stack.active_jobs[0].seed == bad else loss for loss in train_epoch(stack)]

    monkeypatch.setattr(Stack, "_train_epoch", poisoned)
    diverged = zoo_of(FITTED, tmp_path / "zoo").manifest.provenance["diverged"]
    assert [(entry["run"], entry["seed"]) for entry in diverged] == [("start-of-sine_mlp", bad)]


# Files --------------------------------------------------------------------------------------------------------


def file_spec(path, name=RESNET):
    text = TEXT.replace("epochs = {low = 2, high = 4}", f'epochs = 1\nstart = {{file = "{path}"}}')
    return parse_spec(text.replace("resnet8@digits", name) if name != RESNET else text, "x.toml")


def test_a_checkpoint_and_preps_are_starts(tmp_path):
    torch.manual_seed(3)
    network = prepkit.architecture(RESNET).build().train()
    network(torch.randn(64, 1, 8, 8))
    torch.save({"state_dict": {f"module.{name}": t for name, t in network.state_dict().items()}}, tmp_path / "a.pt")
    packed = prepkit.pack_checkpoint(tmp_path / "a.pt", keep_batch_norm=True)
    prepkit.save_prep(packed.prep, tmp_path / "kept.prep.safetensors")
    for file in ("a.pt", "kept.prep.safetensors"):
        (found,) = starts_of(file_spec(tmp_path / file))[RESNET].values()
        expected = network.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    prepkit.save_prep(prepkit.pack_checkpoint(tmp_path / "a.pt").prep, tmp_path / "folded.prep.safetensors")
    with pytest.raises(ZooError, match=r"x\.toml, training\.\"resnet8@digits\"\.start\.file: .* BatchNorms folded"):
        starts_of(file_spec(tmp_path / "folded.prep.safetensors"))
    network.linear.bias.data[0] = float("nan")
    torch.save(network.state_dict(), tmp_path / "nan.pt")
    with pytest.raises(ZooError, match=r"start\.file: '.*nan\.pt'.* no training can begin there"):
        starts_of(file_spec(tmp_path / "nan.pt"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "is empty"),
        ({"weight": torch.ones(3)}, "is no resnet8@digits"),
        (LENET, "is no resnet8@digits: .* Its tensors are those of lenet_like@digits"),
    ],
)
def test_a_file_that_is_no_start_is_told_before_anything_is_written(tmp_path, content, message):
    file = tmp_path / "a.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content if isinstance(content, dict) else prepkit.architecture(content).build().state_dict(), file)
    with pytest.raises(ZooError, match=rf'^x\.toml, training\."resnet8@digits"\.start\.file: .*{message}'):
        train_zoo(file_spec(file), tmp_path / "zoo", device="cpu", threads=1)
    assert not (tmp_path / "zoo").exists()


def test_a_file_that_was_changed_meanwhile_is_told(tmp_path, monkeypatch):
    network = prepkit.architecture(SINE).build()
    torch.save(network.state_dict(), tmp_path / "a.pt")
    text = FITTED.replace("{fitted = 12}", f'{{file = "{tmp_path}/a.pt"}}')
    with monkeypatch.context() as patch:
        patch.setattr(running, "train_unit", lambda *given: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            zoo_of(text, tmp_path / "zoo")
    content = (tmp_path / "a.pt").read_bytes()
    network.linear.bias.data += 1
    torch.save(network.state_dict(), tmp_path / "a.pt")
    with pytest.raises(ZooError, match=r"begun with other weights: the file a\.pt of sine_mlp@sdf_small has changed"):
        zoo_of(text, tmp_path / "zoo")
    (tmp_path / "a.pt").write_bytes(content)
    zoo = zoo_of(text, tmp_path / "zoo")
    assert set(zoo.table["start"].to_pylist()) == {"file"}
    facts = zoo.manifest.provenance["starts"][SINE]["file"]
    assert (facts["file"], facts["file_sha256"]) == ("a.pt", hashlib.sha256(content).hexdigest())
    assert "begin with the weights in the file a.pt." in (tmp_path / "zoo" / "README.md").read_text()
