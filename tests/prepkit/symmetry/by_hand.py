"""Acting with symmetries value by value, in plain Python, to compare with."""

import math

import torch
from torch.func import functional_call

from prepkit.symmetry.spec import Fixed, Product, Sum, Units


def source(term, place, change, env):
    """Return the place along an axis that a value comes from; `env` has the units at this place, by group."""
    if term is None or isinstance(term, Fixed):
        return place
    if isinstance(term, Units):
        order = change[term.group]
        for outer in order.over:
            order = order[env[outer]]
        return order[place]
    if isinstance(term, Sum):
        start = 0
        for part in term.parts:
            if start <= place < start + part.size:
                return start + source(part, place - start, change, env)
            start += part.size
    total = 0
    own = dict(env)
    for step in (1, 2):  # the units first, so that all others find them
        rest = place
        for index, factor in enumerate(term.factors):
            inner = math.prod(one.size for one in term.factors[index + 1 :])
            digit, rest = divmod(rest, inner)
            if step == 1 and isinstance(factor, Units):
                own[factor.group] = digit
            elif step == 2:
                total += inner * source(factor, digit, change, own)
    return total


def units_at(term, place):
    """Return the units at a place of an axis, by group, for groups that stand everywhere along it."""
    if isinstance(term, Units):
        return {term.group: place}
    found = {}
    if isinstance(term, Product):
        for index, factor in enumerate(term.factors):
            digit, place = divmod(place, math.prod(one.size for one in term.factors[index + 1 :]))
            if isinstance(factor, Units):
                found[factor.group] = digit
    return found


class Order(list):
    """An order of units, or nested lists of orders, one for each unit of the groups in `over`."""

    over = ()


def orders(symmetries, seed=0):
    """Draw an order for each group in which no unit stays where all stay."""
    generator = torch.Generator().manual_seed(seed)

    def nested(sizes, size):
        if sizes:
            return Order(nested(sizes[1:], size) for _ in range(sizes[0]))
        order = torch.randperm(size, generator=generator).tolist()
        return Order(order if order != sorted(order) else order[1:] + order[:1])

    found = {}
    for group in symmetries.groups:
        sizes = [symmetries.group[outer].size for outer in group.over]
        order = nested(sizes, group.size) if group.reason is None else still(sizes, group.size)
        order.over = group.over
        found[group.name] = order
    return found


def still(sizes, size):
    return Order(still(sizes[1:], size) for _ in range(sizes[0])) if sizes else Order(range(size))


def permuted(symmetries, tensors, change, without=None):
    """Return tensors with their units in another order; `without` is one (tensor, axis) that is left as it is."""
    moved = {}
    for name, tensor in tensors.items():
        terms = symmetries.axes.get(name)
        if terms is None or not any(terms):
            moved[name] = tensor
            continue
        values = torch.empty_like(tensor)
        for place in (
            torch.cartesian_prod(*(torch.arange(size) for size in tensor.shape)).view(-1, tensor.dim()).tolist()
        ):
            origin = []
            for axis, term in enumerate(terms):
                env = {}
                for other, own in enumerate(terms):
                    if other != axis:
                        env.update(units_at(own, place[other]))
                at = place[axis]
                origin.append(at if (name, axis) == without else source(term, at, change, env))
            values[tuple(place)] = tensor[tuple(origin)]
        moved[name] = values
    return moved


def outputs(network, tensors, inputs):
    """Return all outputs in float64, flattened into one row."""
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    inputs = tuple(one.double() if one.is_floating_point() else one for one in inputs)
    aliases = network.state_dict().keys() - {n for n, _ in (*network.named_parameters(), *network.named_buffers())}
    with torch.no_grad():
        result = functional_call(network, {n: t for n, t in tensors.items() if n not in aliases}, inputs)
    return result.flatten()


def values(network, seed=1):
    """Return a state dict in float64 of random values that all matter; variances are positive."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    seen = {}
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point():
            state[name] = tensor
            continue
        if tensor.data_ptr() not in seen:
            drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            scale = 0.5 if tensor.dim() < 2 else 1 / max(1, tensor[0].numel()) ** 0.5
            seen[tensor.data_ptr()] = drawn.abs() + 0.5 if name.endswith("running_var") else 0.2 + scale * drawn
        state[name] = seen[tensor.data_ptr()]
    return state
