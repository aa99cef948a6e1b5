"""What every task promises, as one test class; the tests of each kind of task subclass it."""

import json

import pytest
import torch

from prepkit.errors import ZooError
from prepkit.tasks import check_record, load_task


class TaskContract:
    """Subclasses give a record and, where instances have data of their own, different items."""

    items = (0, 0, 0)
    seeds = (11, 12, 13)
    batch_size = 16
    exact = 1e-6  # float32 against float64

    @pytest.fixture
    def record(self):
        raise NotImplementedError

    @pytest.fixture
    def data(self):
        return None

    @pytest.fixture
    def task(self, record, data):
        return load_task(record, data)

    def plain_evaluation(self, task, k, outputs_of, split):
        """Accuracy and loss of instance k, computed without the task's own arithmetic.

        outputs_of(inputs [n, *input_shape]) -> [n, outputs]
        """
        raise NotImplementedError

    def networks(self, task, count):
        """`[K, features, outputs]` float64: K linear networks."""
        features = torch.Size(task.input_shape).numel()
        return torch.randn(count, features, task.num_outputs, generator=torch.Generator().manual_seed(0)).double()

    def runner(self, task, weights):
        def run(inputs):
            assert not torch.is_grad_enabled()
            shared = inputs.ndim == 1 + len(task.input_shape)
            flat = inputs.flatten(1)[None] if shared else inputs.flatten(2)
            return flat.to(weights.dtype) @ weights

        return run

    # Records --------------------------------------------------------------------------------------------------

    def test_the_record_is_json_and_gives_the_same_task_back(self, task, data):
        record = json.loads(json.dumps(task.record))
        check_record(record)
        again = load_task(record, data)
        assert again.record == task.record
        assert (again.input_shape, again.num_outputs, dict(again.splits)) == (
            task.input_shape,
            task.num_outputs,
            dict(task.splits),
        )
        for one, other in zip(self.epoch(task), self.epoch(again), strict=True):
            assert_same(one, other)

    def test_an_unknown_key_is_an_error_that_names_it(self, record):
        with pytest.raises(ZooError, match="strange"):
            check_record({**record, "strange": 1})

    # Batches --------------------------------------------------------------------------------------------------

    def epoch(self, task, keep=slice(None), epoch=0):
        return list(task.batches(self.seeds[keep], self.items[keep], epoch, self.batch_size))

    def test_batches_have_the_shapes_and_types_that_are_promised(self, task):
        batches = self.epoch(task)
        assert len(batches) == task.num_batches(self.batch_size)
        assert [batch.inputs.shape[1] for batch in batches[:-1]] == [self.batch_size] * (len(batches) - 1)
        for batch in batches:
            assert batch.inputs.shape[2:] == task.input_shape
            assert batch.targets.shape[:2] == batch.inputs.shape[:2] == (3, batch.inputs.shape[1])
            assert batch.inputs.dtype == torch.float32

    def test_an_instance_has_the_same_batches_alone_and_in_a_stack_bit_for_bit(self, task):
        for epoch in (0, 3):
            stacked = self.epoch(task, epoch=epoch)
            for k in range(3):
                alone = self.epoch(task, slice(k, k + 1), epoch)
                for one, of_all in zip(alone, stacked, strict=True):
                    assert torch.equal(one.inputs[0], of_all.inputs[k])
                    assert torch.equal(one.targets[0], of_all.targets[k])

    def test_an_epoch_is_a_function_of_its_number_alone(self, task, record, data):
        fresh = load_task(record, data)
        self.epoch(task, epoch=0)
        torch.manual_seed(5)
        torch.rand(3)
        for one, other in zip(self.epoch(task, epoch=4), self.epoch(fresh, epoch=4), strict=True):
            assert_same(one, other)

    def test_seeds_and_epochs_differ(self, task):
        first, second = self.epoch(task, epoch=0)[0], self.epoch(task, epoch=1)[0]
        assert not torch.equal(first.inputs[0], second.inputs[0])
        assert not torch.equal(first.inputs[0], first.inputs[1])

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_batches_come_in_the_dtype_that_was_asked_for(self, task, dtype):
        moved = task.to("cpu", dtype)
        for one, other in zip(self.epoch(moved), self.epoch(task), strict=True):
            assert one.inputs.dtype == dtype
            tolerance = self.exact if dtype == torch.float64 else 2**-7
            torch.testing.assert_close(one.inputs.double(), other.inputs.double(), atol=1e-6, rtol=tolerance)

    def test_data_lies_on_the_device_that_was_asked_for(self, task):
        batch = next(iter(task.to("meta").batches(self.seeds, self.items, 0, self.batch_size)))
        assert batch.inputs.device.type == batch.targets.device.type == "meta"
        assert batch.inputs.shape == (3, self.batch_size, *task.input_shape)

    # Losses ---------------------------------------------------------------------------------------------------

    def test_the_loss_of_an_instance_depends_on_that_instance_only(self, task):
        batch = self.epoch(task)[0]
        outputs = torch.randn(*batch.inputs.shape[:2], task.num_outputs, requires_grad=True)
        losses = task.losses(outputs, batch.targets)
        assert losses.shape == (3,)
        for k in range(3):
            (gradient,) = torch.autograd.grad(losses[k], outputs, retain_graph=True)
            assert (gradient.flatten(1).abs().sum(1) > 0).tolist() == [k == j for j in range(3)]
            alone = task.losses(outputs[k : k + 1], batch.targets[k : k + 1])
            torch.testing.assert_close(alone[0], losses[k])

    def test_the_loss_is_computed_in_float32_at_least(self, task):
        batch = self.epoch(task)[0]
        outputs = torch.randn(*batch.inputs.shape[:2], task.num_outputs)
        coarse = outputs.bfloat16()
        assert torch.equal(task.losses(coarse, batch.targets), task.losses(coarse.float(), batch.targets))
        assert task.losses(outputs.double(), batch.targets).dtype == torch.float64

    # Evaluation -----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("split", ["train", "validation", "test"])
    def test_evaluation_equals_a_plain_loop_whatever_the_batch_size(self, task, split):
        task = task.to("cpu", torch.float64)
        weights = self.networks(task, 3)
        found = task.evaluate(self.runner(task, weights), self.items, split, batch_size=7)
        for k in range(3):
            accuracy, loss = self.plain_evaluation(task, k, lambda inputs, k=k: inputs.flatten(1) @ weights[k], split)
            assert found["accuracy"][k].item() == pytest.approx(accuracy, abs=1e-12)
            assert found["loss"][k].item() == pytest.approx(loss, rel=1e-9)
        whole = task.evaluate(self.runner(task, weights), self.items, split)
        for name, values in found.items():
            assert (values.dtype, values.shape, values.device.type) == (torch.float64, (3,), "cpu")
            torch.testing.assert_close(whole[name], values, rtol=1e-12, atol=1e-12)

    def test_evaluation_of_a_stack_equals_that_of_each_alone(self, task):
        weights = self.networks(task, 3).float()
        together = task.evaluate(self.runner(task, weights), self.items, "test")
        for k in range(3):
            keep = slice(k, k + 1)
            alone = task.evaluate(self.runner(task, weights[keep]), self.items[keep], "test")
            assert alone["accuracy"][0] == together["accuracy"][k]
            torch.testing.assert_close(alone["loss"][0], together["loss"][k], rtol=1e-5, atol=1e-6)

    def test_an_unknown_split_is_an_error_that_lists_the_splits(self, task):
        with pytest.raises(ZooError, match=r"train.*validation.*test.*Did you mean 'test'"):
            task.evaluate(lambda inputs: inputs, self.items, "tests")

    def test_an_empty_batch_is_an_error(self, task):
        with pytest.raises(ZooError, match="batch_size"):
            next(iter(task.batches(self.seeds, self.items, 0, 0)))


def assert_same(one, other):
    assert torch.equal(one.inputs, other.inputs)
    assert torch.equal(one.targets, other.targets)
