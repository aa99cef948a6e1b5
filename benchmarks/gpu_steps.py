"""NetSpace's steps at the paper's sizes, on random images and points: the plain way and that of `netspace train`.

single: PRep 8 x 10,000, 8 ResNet8@cifar10, 128 images
multi:  PRep 88 x 10,000, a LeNetLike and a ResNet32 with the two points between them, teacher ResNet56, 128 images
sdf:    PRep 8 x 10,000, 4 sine MLPs, 50,000 points each
Both ways draw their batches as `netspace train` does. benchmarks/gpu_check.py runs this module on a GPU, and the tests
run it with tiny sizes on a CPU.
"""

import time
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

import prepkit
from benchmarks.baselines import netspace_step
from netspace.data import AtRandom, Batch, Data, InTurn, ready_teacher
from netspace.recipe import Recipe, load_recipe
from netspace.run.run import new_space
from netspace.space import gpu_functions
from netspace.training._objective import Objective
from netspace.training._step import Step, adam
from netspace.training.losses import boundary_pairs, gammas, interpolate_embeddings, interpolated_class_ids, loss_kd
from netspace.training.memory import predicted_at_once
from prepkit.fusion.fold import fold
from prepkit.support.device import bf16_autocast
from prepkit.support.graphs import CudaRecorder
from prepkit.support.processes import Ranks
from prepkit.support.progress import Progress
from prepkit.tasks._augmentation import Normalisation
from prepkit.tasks._image_record import Augmentation
from prepkit.tasks._image_set import Part
from prepkit.tasks._shapes import ShapeTask
from prepkit.tasks.images import Dealt, ImageTask

RECIPES = {"single": "cifar10_single", "multi": "cifar10_multi", "sdf": "chairs"}
TINY = {"single": "digits_single", "multi": "digits_multi", "sdf": "chairs_mini"}
CLASS_IDS = {"single": (0,) * 16, "multi": (0, 3), "sdf": (0,) * 8}
CLASSES = 10


def random_images(shape: tuple[int, ...], count: int, device: torch.device) -> ImageTask:
    """A task of random images, cropped and mirrored as CIFAR-10's recipes say."""
    generator = torch.Generator().manual_seed(0)

    def part(size: int) -> Dealt:
        images = torch.randint(0, 256, (size, *shape), dtype=torch.uint8, generator=generator)
        return Dealt(Part(images, torch.randint(0, CLASSES, (size,), generator=generator)))

    parts = {"train": part(count), "validation": part(count // 5), "test": part(count // 5)}
    normalisation = Normalisation(255, (0.45,) * shape[0], (0.23,) * shape[0])
    return ImageTask({"kind": "images"}, parts, CLASSES, normalisation, Augmentation(4, True)).to(device)


class RandomPoints:
    """A source of random points with random distances."""

    count, facts = None, {}  # type: ignore[var-annotated]

    def __init__(self, sizes: dict[str, int]) -> None:
        self.sizes = sizes

    def rows(self, item: int) -> dict[str, Any]:
        """Points of each split `[n, 4]`."""
        random = np.random.default_rng(item)
        return {name: random.uniform(-1, 1, (size, 4)).astype(np.float32) for name, size in self.sizes.items()}


def random_points(pool: int, device: torch.device) -> ShapeTask:
    """A task of random points in place of chairs."""
    record = {
        "kind": "shapes", "dataset": "procedural_chairs", "count": 1000, "seed": 0, "steps_per_epoch": 100,
        "points": {"pool": pool, "near_surface": 0.5, "sigma": 0.05},
        "split": {"seed": 0, "test": 64, "validation": 64}, "clamp": 0.1,
    }  # fmt: skip
    sizes = {"train": pool, "validation": 64, "test": 64}
    return ShapeTask(record, RandomPoints(sizes), device)  # type: ignore[arg-type]


class RandomData(Data):
    """The data of a training without a zoo: instances as their architectures start, random samples."""

    def __init__(self, recipe: Recipe, class_ids: tuple[int, ...], device: torch.device, count: int) -> None:
        network = recipe.network
        prep_shape = prepkit.PRepShape(network.height, network.width)
        self.recipe, self.device = recipe, device
        self.signals = recipe.setting == "sdf"
        members = [prepkit.architecture(name) for name in recipe.architectures]
        self.registry = prepkit.Registry(members, class_ids={one.name: place for place, one in enumerate(members)})
        preps = []
        for class_id in class_ids:
            architecture = self.registry.by_class_id(class_id)
            preps.append(architecture.layout.pack(architecture.build_folded().state_dict(), prep_shape))
        self.preps_NHW = torch.stack(preps).detach().to(device)
        self.class_ids, self.items = list(class_ids), list(range(len(class_ids)))
        self.line_order = None  # no recipe of the paper asks for the line loss
        self.task = (
            random_points(count, device) if self.signals else random_images(members[0].input_shape, count, device)
        )
        self.teacher = None
        if recipe.has_classes:
            known = prepkit.built_in_registry(recipe.architectures[0].partition("@")[2]).teacher
            assert known is not None
            with_batch_norm = known.build().eval()
            folded = fold(with_batch_norm, known.example_input(2)).network
            self.teacher = ready_teacher(folded, recipe, device)  # a zoo's teacher is folded
            self.plain_teacher = with_batch_norm.to(device).requires_grad_(False)
        self.order = (
            AtRandom(len(class_ids), recipe.batch.instances, 0, (0,), (len(class_ids) - 1,), 1.0)
            if recipe.has_classes
            else InTurn(len(class_ids), recipe.batch.instances, 0)
        )
        if self.signals:
            self.task.prepare(self.items)


def moved(batch: Batch, device: torch.device) -> Batch:
    """The same batch on a device."""
    tensors = {name: value.to(device) for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return replace(batch, **tensors)


def recipe_of(setting: str, tiny: bool, precision: str = "bfloat16") -> Recipe:
    """The paper's recipe of a setting, or one with a narrow PRep and few samples."""
    if not tiny:
        recipe = load_recipe(RECIPES[setting], {"training.precision": precision})
    else:
        size = {"batch.instances": 2, "batch.samples": 4}
        recipe = load_recipe(TINY[setting], {**size, "training.precision": precision})
    return replace(recipe, network=replace(recipe.network, initialisation="paper"))


class Case:
    """A setting with random instances and samples on a device; `plain` and `ours` take a step each."""

    def __init__(
        self, setting: str, device: torch.device, tiny: bool = False, precision: str = "bfloat16", tf32: bool = True
    ) -> None:
        torch.manual_seed(0)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        self.setting, self.device, self.tiny = setting, device, tiny
        self.recipe = recipe = recipe_of(setting, tiny, precision)
        self.data = RandomData(recipe, CLASS_IDS[setting], device, 256 if tiny else 50_000)
        self.registry = self.data.registry
        self.networks = [one.build_folded().requires_grad_(False).eval().to(device) for one in self.registry]
        self.layouts = [one.layout for one in self.registry]
        self.batches = self.data.batches(0)
        self.space = new_space(recipe).to(device)
        self.chosen: dict[str, Any] | None = None
        if device.type == "cuda":  # as a training does
            count, halved = predicted_at_once(recipe), precision == "bfloat16"
            self.chosen = gpu_functions.choose(self.space, count, halved=halved, progress=Progress())
        self.plain_optimiser = torch.optim.Adam(self.space.parameters(), lr=1e-4)
        objective = Objective(self.space, recipe, self.registry, self.data.teacher)
        trained = [parameter for parameter in self.space.parameters() if parameter.requires_grad]
        self.step = Step(objective, adam(trained, 1e-4, device), Ranks(), device)
        self.eager_step = Step(objective, adam(trained, 1e-4, device), Ranks(), device)
        for graphed in (self.eager_step.accumulate, self.eager_step.update):
            graphed.failure = "not recorded, for comparison"

    def next_batch(self) -> Batch:
        """The next batch, as `netspace train` draws it."""
        return next(self.batches)

    def ours(self, batch: Batch | None = None) -> dict[str, Tensor]:
        """A step of `netspace train`."""
        return self.step([batch or self.next_batch()], 1e-4)

    def eager(self, batch: Batch | None = None) -> dict[str, Tensor]:
        """The same step without CUDA graphs."""
        return self.eager_step([batch or self.next_batch()], 1e-4)

    def plain(self, batch: Batch | None = None, bf16: bool = False) -> Tensor:
        """The step as the reference takes it: decoder batched, instances one after another, teacher three times."""
        batch = batch or self.next_batch()
        with bf16_autocast(self.device, bf16) if bf16 else nullcontext():
            if self.setting == "multi":
                return self._plain_multi(batch)
            if self.setting == "sdf":
                return self._plain_sdf(batch)
            (network,), (layout,) = self.networks, self.layouts
            return netspace_step(self.space, self.plain_optimiser, network, layout, batch.preps, batch.inputs)

    def _plain_multi(self, batch: Batch) -> Tensor:
        count = len(self.registry)
        latents = self.space.encoder.plain(batch.preps)
        pairs, factors = boundary_pairs(batch.class_ids, count), gammas(count)
        between = interpolate_embeddings(latents, pairs, factors).flatten(0, 1)
        loss = torch.zeros((), device=self.device)
        asked = ([*batch.class_ids], [*(interpolated_class_ids(factors, count) * len(pairs))])
        assert batch.labels is not None
        with torch.no_grad():
            taught = [self.data.plain_teacher(batch.inputs) for _ in range(3)]  # for targets and points between
        for part, (embeddings, class_ids) in enumerate(zip((latents, between), asked, strict=True)):
            preps, logits = self.space.decoder.plain(embeddings), self.space.classify(embeddings)
            loss = loss + cross_entropy(logits, torch.tensor(class_ids, device=self.device), reduction="sum")
            for position, named in enumerate(logits.argmax(1).tolist()):
                tensors = dict(self.layouts[named].unpack(preps[position].float()))
                outputs = functional_call(self.networks[named], tensors, (batch.inputs,))
                loss = loss + loss_kd(outputs[None], taught[2 if part else position], batch.labels).sum()
        self.plain_optimiser.zero_grad()
        loss.backward()
        self.plain_optimiser.step()
        return loss.detach()

    def _plain_sdf(self, batch: Batch) -> Tensor:
        (network,), (layout,) = self.networks, self.layouts
        predicted = self.space.decoder.plain(self.space.encoder.plain(batch.preps))
        losses = []
        with torch.autocast(self.device.type, enabled=False):
            for target, prep, points in zip(batch.preps, predicted.float(), batch.inputs, strict=True):
                with torch.no_grad():
                    expected = functional_call(network, dict(layout.unpack(target)), (points,))
                outputs = functional_call(network, dict(layout.unpack(prep)), (points,))
                losses.append((outputs - expected).square().mean())
            loss = torch.stack(losses).mean()
        self.plain_optimiser.zero_grad()
        loss.backward()
        self.plain_optimiser.step()
        return loss.detach()


def sections(setting: str, device: torch.device, tiny: bool) -> dict[str, Any]:
    """Milliseconds of each section of a step, each recorded alone and repeated; encoding and decoding with backward."""
    case = Case(setting, device, tiny, "float32" if device.type == "cpu" else "bfloat16")
    objective, batch, space = case.step.operations.objective, case.next_batch(), case.space
    preps, class_ids = batch.preps, batch.class_ids
    encoder, decoder = list(space.encoder.parameters()), list(space.decoder.parameters())
    with torch.no_grad(), objective._autocast():
        latents = space.encode(preps)
    if setting == "multi":
        latents = torch.cat([latents, latents])
        class_ids = (0, 1, 2, 3)
    latents.requires_grad_()
    shape = prepkit.PRepShape(*preps.shape[1:])
    pairs = zip(case.layouts, case.networks, strict=True)
    packed = [layout.pack(network.state_dict(), shape) for layout, network in pairs]
    predicted = torch.stack(packed) if setting == "multi" else preps.clone()
    predicted.requires_grad_()

    def encode() -> object:
        with objective._autocast():
            found = space.encode(preps)
        return torch.autograd.grad(found.float().sum(), encoder)

    def decode() -> object:
        found = objective._decode(latents)
        return torch.autograd.grad(found.sum(), [latents, *decoder])

    def targets() -> object:
        return objective._targets(batch.class_ids, preps, batch.inputs)

    def teach() -> object:
        assert objective.teacher is not None
        with torch.no_grad(), objective._autocast():
            return objective.teacher(batch.inputs)

    taught = teach() if setting == "multi" else targets()

    def judge() -> object:
        def losses_of(group: Any, own: Tensor) -> dict[str, Tensor]:
            inputs = group.select(batch.inputs) if setting == "sdf" else batch.inputs
            return {"loss": objective._run(group, own, inputs).float().square().flatten(1).mean(1)}

        total, _ = objective._instance_losses(class_ids, batch.inputs, predicted, losses_of)
        return torch.autograd.grad(total.sum(), predicted)

    case.ours()
    ways = {
        "encode": encode,
        "decode": decode,
        "predicted instances": judge,
    }
    ways |= {"teacher": teach} if setting == "multi" else {"target instances": targets}
    del taught
    return {name: round(_milliseconds(way, device), 3) for name, way in ways.items()}


def _milliseconds(call: Any, device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e3
    record = CudaRecorder(device)
    for _ in range(3):
        record.aside(call)
    kept, repeat = record(call)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    repeat()
    begin.record()
    for _ in range(20):
        repeat()
    end.record()
    torch.cuda.synchronize()
    del kept
    return float(begin.elapsed_time(end)) / 20
