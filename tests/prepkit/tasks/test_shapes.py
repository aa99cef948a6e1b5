"""The task of shapes: records, batches out of the right points of the right shape, evaluation against plain loops."""

import numpy as np
import pytest
import torch
import trimesh
from contract import TaskContract
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from prepkit.errors import ZooError
from prepkit.tasks import _shapes, check_record, load_task
from prepkit.tasks.chairs import build, chair
from prepkit.tasks.randomness import stream_seed
from prepkit.tasks.task import DataMissing

CHAIRS = {
    "kind": "shapes",
    "dataset": "procedural_chairs",
    "seed": 3,
    "points": {"pool": 400, "near_surface": 0.5, "sigma": 0.05},
    "split": {"seed": 1, "test": 60, "validation": 40},
    "steps_per_epoch": 5,
}
FILES = {
    "kind": "shapes",
    "dataset": "sdf_files",
    "points": {"pool": 100},
    "split": {"seed": 1, "test": 20, "validation": 20},
    "steps_per_epoch": 4,
}
MESHES = {**CHAIRS, "dataset": "meshes"}
del MESHES["seed"]


def ball_files(folder, count=3, points=90, dropped=2):
    """Balls of radius 0.5, 0.4 ...: as many points on each side, and some rows of NaN."""
    for number in range(count):
        draws = np.random.default_rng(number)
        radius = 0.5 - number / 10
        direction = draws.normal(size=(2 * points, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        lengths = np.concatenate([draws.uniform(radius + 0.01, 1, points), draws.uniform(0, radius - 0.01, points)])
        rows = np.concatenate([direction * lengths[:, None], lengths[:, None] - radius], 1).astype(np.float32)
        broken = np.full((dropped, 4), np.nan, np.float32)
        np.savez(folder / f"{number}.npz", pos=np.concatenate([broken, rows[:points]]), neg=rows[points:])
    return folder


class ShapeContract(TaskContract):
    items = (0, 2, 1)

    def plain_evaluation(self, task, k, outputs_of, split):
        points, distances = task.points(self.items[k], split)
        errors = [
            float(outputs_of(point[None])[0, 0] - distance) for point, distance in zip(points, distances, strict=True)
        ]
        return sum(abs(error) <= 1e-2 for error in errors) / len(errors), sum(e * e for e in errors) / len(errors)

    def test_half_of_a_batch_is_inside_and_half_outside(self, task):
        for size in (16, 7, 1):
            batch = next(iter(task.batches(self.seeds, self.items, 0, size)))
            assert ((batch.targets <= 0).sum((1, 2)) == size // 2).all()

    def test_batches_come_from_the_instances_own_pool_and_differ_in_an_epoch(self, task):
        held = {
            item: torch.cat([points, d[:, None]], 1) for item in (0, 1, 2) for points, d in [task.points(item, "train")]
        }
        for batch in self.epoch(task):
            rows = torch.cat([batch.inputs, batch.targets], 2)
            for k, item in enumerate(self.items):
                assert (rows[k][:, None] == held[item][None]).all(2).any(1).all()
        assert len({batch.inputs.numpy().tobytes() for batch in self.epoch(task)}) == task.num_batches(16)

    def test_splits_are_other_points_of_the_same_shape(self, task):
        seen = [task.points(1, split)[0] for split in task.splits]
        assert [len(points) for points in seen] == list(task.splits.values())
        everything = torch.cat(seen)
        assert len(everything.unique(dim=0)) == len(everything)
        for split in task.splits:
            distances = task.points(1, split)[1]
            assert (distances[: len(distances) // 2] <= 0).all()
            assert (distances[len(distances) // 2 :] > 0).all()

    def test_points_are_cut_at_the_clamp(self, record, data):
        cut, whole = load_task({**record, "clamp": 0.05}, data), load_task(record, data)
        for split in whole.splits:
            (points, distances), (same, full) = cut.points(2, split), whole.points(2, split)
            assert torch.equal(points, same)
            assert torch.equal(distances, full.clamp(-0.05, 0.05))
            assert not torch.equal(distances, full)

    def test_a_shape_that_made_room_for_others_comes_back_the_same(self, task):
        first = task.points(0, "train")[0].clone()
        for item in (1, 2, 1):
            task.points(item, "test")
        assert torch.equal(task.points(0, "train")[0], first)
        # a stack goes on although others are asked for between its steps
        expected = self.epoch(task)
        for batch, undisturbed in zip(task.batches(self.seeds, self.items, 0, 16), expected, strict=True):
            assert torch.equal(batch.inputs, undisturbed.inputs)
            task.points(0, "test")
            task.prepare([2])

    def test_points_of_a_shape_are_no_view_that_changes(self, task):
        points, distances = task.points(0, "test")
        before = points.clone(), distances.clone()
        task.points(1, "test")
        assert torch.equal(points, before[0])
        assert torch.equal(distances, before[1])

    def test_instances_are_judged_on_their_own_shape_in_any_order(self, task):
        task.prepare((0, 1, 2))
        loss = task.evaluate(lambda points: 0 * points[..., :1], (2, 0, 1), "test")["loss"]
        expected = [task.points(item, "test")[1].double().square().mean() for item in (2, 0, 1)]
        torch.testing.assert_close(loss, torch.stack(expected), rtol=1e-6, atol=0)

    def test_every_instance_of_one_shape_draws_for_itself(self, task):
        batch = next(iter(task.batches((5, 6, 5), (1, 1, 1), 0, 16)))
        assert torch.equal(batch.inputs[0], batch.inputs[2])
        assert not torch.equal(batch.inputs[0], batch.inputs[1])


class TestChairs(ShapeContract):
    @pytest.fixture
    def record(self):
        return CHAIRS

    def test_items_are_the_chairs_of_the_seed(self, task):
        for item in (0, 7, 10**6):
            points, distances = task.to("cpu", torch.float64).points(item, "test")
            exact = build(chair(item, 3)).distance(points.numpy())
            np.testing.assert_allclose(distances.numpy(), exact, atol=1e-7)

    def test_without_a_count_there_is_no_end_and_with_one_there_is(self):
        with pytest.raises(ZooError, match=r"item -1: the shapes of this task are numbered from 0\."):
            load_task(CHAIRS).prepare([0, -1])
        counted = load_task({**CHAIRS, "count": 5})
        assert len(counted.prepare([4])) == 1
        with pytest.raises(ZooError, match=r"item 5: the shapes of this task are numbered 0 to 4\."):
            counted.prepare([5])

    def test_a_record_of_chairs_stays_as_it_is(self, task):
        assert task.record == CHAIRS

    def test_defaults_are_those_of_the_docstring(self):
        short = {**CHAIRS, "points": {"pool": 400}}
        assert torch.equal(load_task(short).points(0, "train")[0], load_task(CHAIRS).points(0, "train")[0])

    def test_seeds_of_points_and_of_chairs_matter(self, task):
        other = load_task({**CHAIRS, "split": {**CHAIRS["split"], "seed": 2}})
        assert not torch.equal(other.points(0, "test")[0], task.points(0, "test")[0])
        other = load_task({**CHAIRS, "seed": 4})
        assert not torch.equal(other.points(0, "test")[0], task.points(0, "test")[0])

    def test_no_more_shapes_are_kept_than_the_largest_stack_has(self, task, monkeypatch):
        made = []
        rows = task._source.rows
        monkeypatch.setattr(task._source, "rows", lambda item: made.append(item) or rows(item))
        for items in ((0, 1, 2), (2, 1), (0,), (3,), (1,), (0, 1, 2, 4), (3,)):
            task.prepare(items)
        # 3 took the place of 2, the one not asked for longest; the larger stack found 0 and 1 there
        assert made == [0, 1, 2, 3, 2, 4, 3]
        assert len(task._rows) == 4


class TestSampleFiles(ShapeContract):
    @pytest.fixture
    def record(self):
        return FILES

    @pytest.fixture
    def data(self, tmp_path):
        return ball_files(tmp_path)

    def test_the_record_says_which_files_they_are(self, task, data):
        assert task.record.keys() - FILES.keys() == {"count", "sha256"}
        assert task.record["count"] == 3
        ball_files(data, points=91)
        with pytest.raises(ZooError, match=r"task, sha256: .*name the folder that the zoo was made from"):
            load_task(task.record, data)
        (data / "2.npz").unlink()
        with pytest.raises(ZooError, match=r"task, count: 3 shapes, but .* holds 2 files"):
            load_task(task.record, data)

    def test_items_are_files_in_natural_order_and_points_are_as_they_stand_there(self, task, data):
        for item in range(3):
            with np.load(data / f"{item}.npz") as archive:
                rows = {row.tobytes() for key in ("pos", "neg") for row in archive[key]}
            for split in task.splits:
                points, distances = task.points(item, split)
                found = torch.cat([points, distances[:, None]], 1).numpy()
                assert all(row.tobytes() in rows for row in found)

    def test_a_file_with_too_few_points_is_an_error(self, data):
        with pytest.raises(ZooError, match=r"0\.npz, neg: 90 points, but half of pool, .* are 120; lower 'pool'"):
            load_task({**FILES, "points": {"pool": 200}}, data).prepare([0])

    def test_without_a_folder_the_error_names_the_option(self):
        with pytest.raises(DataMissing, match="data=FOLDER"):
            load_task(FILES)


class TestMeshes:
    """Only where the points come from differs from chairs."""

    @pytest.fixture
    def data(self, tmp_path):
        for number in range(3):
            trimesh.creation.icosphere(2, 1.0).export(tmp_path / f"{number}.ply")
        trimesh.creation.box((1, 2, 3)).export(tmp_path / "2.ply")
        return tmp_path

    def test_distances_are_those_of_the_normalised_mesh(self, data):
        task = load_task(MESHES, data)
        points, distances = task.points(0, "train")
        np.testing.assert_allclose(distances, points.norm(dim=1) - 1 / 1.03, atol=0.02)

    def test_the_record_says_which_files_they_are_and_gives_the_same_task_back(self, data):
        task = load_task(MESHES, data)
        assert task.record.keys() - MESHES.keys() == {"count", "sha256"}
        again = load_task(task.record, data)
        assert again.record == task.record
        (one,), (other,) = (list(found.batches([1], [2], 0, 16))[-1:] for found in (task, again))
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.targets, other.targets)

    def test_a_mesh_without_room_inside_is_an_error_that_names_the_shape(self, data):
        trimesh.creation.box((1, 1, 1e-6)).export(data / "1.ply")
        with pytest.raises(ZooError, match=r"shape 1: \d+ of 100 points inside were found among"):
            load_task(MESHES, data).prepare([1])


# Records ----------------------------------------------------------------------------------------------------------


def changed(record, path, value):
    key, *rest = path
    found = {**record, key: changed(record.get(key, {}), rest, value) if rest else value}
    return {name: item for name, item in found.items() if item is not ...}


@pytest.mark.parametrize(
    ("record", "path", "value", "message"),
    [
        (
            CHAIRS,
            ["dataset"],
            "procedural_chair",
            r"task, dataset: expected one of procedural_chairs, .*; .*Did you mean 'procedural_chairs'\?",
        ),
        (
            CHAIRS,
            ["steps_per_epoch"],
            ...,
            r"task: 'steps_per_epoch' is missing; expected a whole number of at least 1",
        ),
        (CHAIRS, ["steps_per_epoch"], 0, r"task, steps_per_epoch: .* found 0"),
        (CHAIRS, ["steps_per_epochs"], 3, r"task: unknown key 'steps_per_epochs'.*Did you mean 'steps_per_epoch'\?"),
        (CHAIRS, ["seed"], ..., r"task: 'seed' is missing; expected a whole number"),
        (CHAIRS, ["seed"], True, r"task, seed: .* found true"),
        (CHAIRS, ["sha256"], "0" * 64, r"task: unknown key 'sha256'"),
        (FILES, ["seed"], 0, r"task: unknown key 'seed'"),
        (FILES, ["sha256"], "12", r"task, sha256: expected 64 hex digits; found '12'"),
        (FILES, ["points", "sigma"], 0.1, r"task, points: unknown key 'sigma'; known are pool"),
        (CHAIRS, ["count"], 0, r"task, count: expected a whole number of at least 1; found 0"),
        (CHAIRS, ["points"], 400, r"task, points: expected a table of pool, near_surface, sigma; found 400"),
        (CHAIRS, ["points", "pool"], 401, r"task, points.pool: expected an even number of at least 2, .*; found 401"),
        (
            CHAIRS,
            ["points", "pool"],
            400.0,
            r"task, points.pool: expected an even number of at least 2, .*; found 400.0",
        ),
        (
            CHAIRS,
            ["points", "near_surface"],
            1.5,
            r"task, points.near_surface: expected a number from 0 to 1; found 1.5",
        ),
        (CHAIRS, ["points", "sigma"], "0.1", r"task, points.sigma: expected a number from 0 to 1; found '0.1'"),
        (CHAIRS, ["split", "test"], 0, r"task, split.test: expected an even number of at least 2, .*; found 0"),
        (
            CHAIRS,
            ["split", "validation"],
            3,
            r"task, split.validation: expected an even number of at least 0, .*; found 3",
        ),
        (CHAIRS, ["split", "seed"], ..., r"task, split: 'seed' is missing"),
        (CHAIRS, ["split", "train"], 4, r"task, split: unknown key 'train'; known are seed, test, validation"),
        (CHAIRS, ["clamp"], 0, r"task, clamp: expected a number above 0; found 0"),
        (CHAIRS, ["clamp"], float("inf"), r"task, clamp: expected a number above 0; found inf"),
        (CHAIRS, ["clamp"], float("nan"), r"task, clamp: expected a number above 0; found nan"),
    ],
)
def test_a_wrong_record_is_an_error_with_its_place(record, path, value, message):
    check_record(record)
    with pytest.raises(ZooError, match=message):
        check_record(changed(record, path, value))


def test_validation_may_be_missing():
    task = load_task(changed(CHAIRS, ["split", "validation"], ...))
    assert dict(task.splits) == {"train": 400, "validation": 0, "test": 60}
    with pytest.raises(ZooError, match=r"split 'validation' has no points; splits are: train, test"):
        task.evaluate(lambda inputs: inputs[..., :1], [0], "validation")


# What it is for ---------------------------------------------------------------------------------------------------


def test_a_small_network_learns_its_chair_and_no_other():
    from prepkit.families.registry import architecture

    record = {**CHAIRS, "points": {"pool": 4096}, "steps_per_epoch": 150}
    task = load_task(record)
    torch.manual_seed(0)
    network = architecture("sine_mlp@sdf_small").build()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for batch in task.batches([0], [1], 0, 256):
        optimizer.zero_grad()
        task.losses(network(batch.inputs[0])[None], batch.targets).sum().backward()
        optimizer.step()
    own, other = task.evaluate(network, [1, 2], "test")["accuracy"]
    assert own > 0.35
    assert own > 2 * other


def test_points_first_asked_for_in_inference_mode_can_be_replaced_outside():
    task = load_task(CHAIRS)
    with torch.inference_mode():
        first, _ = task.points(0, "test")
        first = first.clone()
    task.points(1, "test")  # takes the place of the first, in the same memory
    with torch.no_grad():
        assert torch.equal(task.points(0, "test")[0], first)


class Copies(TorchDispatchMode):
    """Notes how many values each copy from the host to a GPU has."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        found = operation(*args, **(kwargs or {}))
        given = [value for value in args if isinstance(value, torch.Tensor)]
        if isinstance(found, torch.Tensor) and found.is_cuda and any(not value.is_cuda for value in given):
            self.sizes.append(found.numel())
        return found


def test_a_gpu_draws_its_own_points_and_nothing_but_row_numbers_is_copied_to_it(monkeypatch):
    """Tensors without values stand for those of a GPU."""
    asked = []

    def generator(purpose, *numbers, device):
        asked.append((purpose, *numbers, str(device)))
        return torch.Generator()

    monkeypatch.setattr(_shapes, "generator", generator)
    task = load_task(CHAIRS)
    task._slots.update({0: 0, 1: 1})
    with FakeTensorMode(), Copies() as copies:
        task.device, task._rows = torch.device("cuda:0"), torch.empty(2, 500, 4, device="cuda:0")
        batches = list(task.batches((5, 6), (0, 1), 7, 1000))
    assert [batch.inputs.shape for batch in batches] == [(2, 1000, 3)] * 5
    assert all(batch.inputs.is_cuda and batch.targets.is_cuda for batch in batches)
    assert asked == [("points", 5, 7, "cuda:0"), ("points", 6, 7, "cuda:0")]
    assert copies.sizes == [2] * 5


def test_the_points_that_a_cpu_draws_are_the_same_for_ever():
    """Zoos and runs that were begun before a GPU drew its own points go on with these."""
    task = load_task(CHAIRS)
    stream, half = torch.Generator().manual_seed(stream_seed("points", 5, 7)), 200
    points, distances = task.points(1, "train")
    for batch in task.batches((5,), (1,), 7, 9):
        places = torch.randint(half, (9,), generator=stream) + torch.tensor([0] * 4 + [half] * 5)
        assert torch.equal(batch.inputs[0], points[places])
        assert torch.equal(batch.targets[0, :, 0], distances[places])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpus_points_depend_on_seed_and_epoch_alone():
    task = load_task(CHAIRS).to("cuda")

    def points(seeds, items, epoch):
        return torch.stack([batch.inputs for batch in task.batches(seeds, items, epoch, 64)])

    first = points((5, 6), (0, 1), 7)
    assert torch.equal(points((5, 6), (0, 1), 7), first)
    assert torch.equal(points((6,), (1,), 7)[:, 0], first[:, 1])
    assert not torch.equal(points((5, 6), (0, 1), 8), first)
    held = task.points(0, "train")[0]
    assert (first[:, 0][:, :, None] == held[None, None]).all(3).any(2).all()
