"""Each equation against a transcription of it in float64, written here with loops over single numbers.

Each transcription takes softmax by itself and shares nothing with another; autograd through it gives the gradients.
"""

import pytest
import torch

import prepkit
from netspace.training import losses

T, ALPHA = 4.0, 0.9
N, B, C, A, P = 3, 4, 5, 4, 2


pytestmark = pytest.mark.usefixtures("one_thread")


def leaf(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(*shape, generator=generator, dtype=torch.float64)).requires_grad_()


def labels(*shape, below=C, seed=0):
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def agree(computed, transcribed, *leaves):
    """Values agree, and so do the gradients of a sum with unequal weights."""
    assert computed.dtype == torch.float64
    transcribed = torch.stack(transcribed).view(computed.shape)
    torch.testing.assert_close(computed, transcribed, rtol=1e-12, atol=1e-12)
    weights = torch.arange(1.0, computed.numel() + 1, dtype=torch.float64).view(computed.shape)
    for value in (computed, transcribed):
        assert value.requires_grad
    found = torch.autograd.grad((weights * computed).sum(), leaves, retain_graph=True)
    expected = torch.autograd.grad((weights * transcribed).sum(), leaves, retain_graph=True)
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.abs().max() > 1e-6
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


# The transcriptions: Eq. 1, 3 and 8; 2; 4 and 9; 6 and 7 -----------------------------------------------------------


def written_kl(p, t):
    """KL averaged across samples times T^2, of logits p[b][c] and target logits t[b][c]."""
    total = 0.0
    for b in range(len(p)):
        p_sum = sum(torch.exp(p[b][c] / T) for c in range(len(p[b])))
        t_sum = sum(torch.exp(t[b][c] / T) for c in range(len(t[b])))
        for c in range(len(p[b])):
            q = torch.exp(p[b][c] / T) / p_sum
            r = torch.exp(t[b][c] / T) / t_sum
            total = total + r * torch.log(r / q)
    return total / len(p) * T * T


def written_mse(p, t):
    total, count = 0.0, 0
    for b in range(len(p)):
        for d in range(len(p[b])):
            total, count = total + (p[b][d] - t[b][d]) * (p[b][d] - t[b][d]), count + 1
    return total / count


def written_ce(p, y):
    total = 0.0
    for b in range(len(p)):
        denominator = sum(torch.exp(p[b][c]) for c in range(len(p[b])))
        total = total - torch.log(torch.exp(p[b][int(y[b])]) / denominator)
    return total / len(p)


def written_class_ce(c_p, c_t):
    denominator = sum(torch.exp(c_p[k]) for k in range(len(c_p)))
    return -torch.log(torch.exp(c_p[c_t]) / denominator)


# Eq. 1 to 6 --------------------------------------------------------------------------------------------------------


def test_eq_1_one_target_each():
    p, t = leaf(N, B, C), leaf(N, B, C, seed=1)
    agree(losses.loss_pred(p, t), [written_kl(p[n], t[n]) for n in range(N)], p, t)


def test_eq_2():
    p, t = leaf(N, B, 2), leaf(N, B, 2, seed=1)
    agree(losses.loss_pred_signal(p, t), [written_mse(p[n], t[n]) for n in range(N)], p, t)


def test_eq_3_one_teacher_for_all():
    p, t_star = leaf(N, B, C), leaf(B, C, seed=1)
    agree(losses.loss_pred_star(p, t_star), [written_kl(p[n], t_star) for n in range(N)], p, t_star)


@pytest.mark.parametrize("shape", [(B,), (N, B)])
def test_eq_4(shape):
    p, y = leaf(N, B, C), labels(*shape)
    own = y.expand(N, B)
    agree(losses.loss_task(p, y), [written_ce(p[n], own[n]) for n in range(N)], p)


def test_eq_5():
    p, t_star, y = leaf(N, B, C), leaf(B, C, seed=1), labels(B)
    expected = [0.9 * written_kl(p[n], t_star) + (1 - 0.9) * written_ce(p[n], y) for n in range(N)]
    agree(losses.loss_kd(p, t_star, y), expected, p, t_star)


def test_eq_6():
    c_p, c_t = leaf(N, A), labels(N, below=A)
    agree(losses.loss_class(c_p, c_t), [written_class_ce(c_p[n], int(c_t[n])) for n in range(N)], c_p)


# Eq. 7 to 12 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "expected"), [(2, ()), (3, (1 / 2,)), (4, (1 / 3, 2 / 3)), (5, (0.25, 0.5, 0.75))])
def test_eq_12(count, expected):
    assert losses.gammas(count) == pytest.approx(expected, rel=1e-15)
    assert losses.interpolated_class_ids(losses.gammas(count), count) == tuple(range(1, count - 1))


def test_every_interpolated_class_id_is_whole_for_many_architectures():
    for count in range(2, 300):
        assert losses.interpolated_class_ids(losses.gammas(count), count) == tuple(range(1, count - 1))


def test_all_pairs_of_boundary_instances():
    assert losses.boundary_pairs([3, 0, 1, 0, 2, 3], 4) == [(1, 0), (1, 5), (3, 0), (3, 5)]
    assert losses.boundary_pairs([1, 0], 2) == [(1, 0)]
    assert losses.boundary_pairs([0, 2], 4) == []  # the largest of the batch is no boundary
    assert losses.boundary_pairs([3, 3], 4) == []
    assert losses.boundary_pairs([], 4) == []


@pytest.mark.parametrize("count", [3, 4])
def test_the_line_between_embeddings(count):
    latent = leaf(6, 3)
    pairs, factors = [(1, 0), (1, 5), (3, 0)], losses.gammas(count)
    expected = [
        (1 - i / (count - 1)) * latent[a][e] + i / (count - 1) * latent[b][e]
        for a, b in pairs
        for i in range(1, count - 1)
        for e in range(3)
    ]
    agree(losses.interpolate_embeddings(latent, pairs, factors), expected, latent)


def test_the_papers_example():
    """0.33 of a LeNetLike (ClassId 0) and 0.66 of a ResNet32 (ClassId 3) is a ResNet8 (ClassId 2)."""
    lenet, resnet32 = torch.tensor([3.0]), torch.tensor([6.0])
    line = losses.interpolate_embeddings(
        torch.stack([resnet32, lenet]), losses.boundary_pairs([3, 0], 4), losses.gammas(4)
    )
    torch.testing.assert_close(line, torch.tensor([[[4.0], [5.0]]]))
    certain = torch.full((1, 2, 4), -50.0)
    certain[0, 0, 1] = certain[0, 1, 2] = 50.0
    assert losses.loss_class_gamma(certain, losses.gammas(4)).max() < 1e-6


@pytest.mark.parametrize("count", [3, 4])
def test_eq_7(count):
    c_p = leaf(P, count - 2, count)
    expected = [written_class_ce(c_p[j][i - 1], i) for j in range(P) for i in range(1, count - 1)]
    agree(losses.loss_class_gamma(c_p, losses.gammas(count)), expected, c_p)


def test_eq_8_to_10():
    p, t_star, y = leaf(P, A - 2, B, C), leaf(B, C, seed=1), labels(B)
    points = [p[j][i] for j in range(P) for i in range(A - 2)]
    agree(losses.loss_pred_star(p, t_star), [written_kl(point, t_star) for point in points], p, t_star)
    agree(losses.loss_task(p, y), [written_ce(point, y) for point in points], p)
    expected = [0.9 * written_kl(point, t_star) + (1 - 0.9) * written_ce(point, y) for point in points]
    agree(losses.loss_kd(p, t_star, y), expected, p, t_star)


@pytest.mark.parametrize("count", [3, 4])
def test_eq_11_and_the_final_loss(count):
    """A batch of two pairs and an instance between, from embeddings on, through stand-ins for NetSpace's parts."""
    class_ids = [0, count - 1, 1, 0]
    latent, t_star, y, c_t = leaf(4, 6), leaf(B, C, seed=1), labels(B), torch.tensor(class_ids)
    to_logits, to_class = leaf(6, B * C, seed=2), leaf(6, count, seed=3)
    pairs, factors = losses.boundary_pairs(class_ids, count), losses.gammas(count)
    between = losses.interpolate_embeddings(latent, pairs, factors)
    interpolated = losses.loss_gamma(
        between @ to_class, factors, (between @ to_logits).view(2, count - 2, B, C), t_star, y
    )
    p, c_p = (latent @ to_logits).view(4, B, C), latent @ to_class
    total = losses.loss_multi(losses.loss_kd(p, t_star, y), losses.loss_class(c_p, c_t), interpolated)

    parts = []
    for a in (0, 3):
        for i in range(1, count - 1):
            e = (1 - i / (count - 1)) * latent[a] + i / (count - 1) * latent[1]
            q = (e @ to_logits).view(B, C)
            kd = 0.9 * written_kl(q, t_star) + (1 - 0.9) * written_ce(q, y)
            parts.append(written_class_ce(e @ to_class, i) + kd)
    leaves = (latent, t_star, to_logits, to_class)
    agree(interpolated, parts, *leaves)
    for n in range(4):
        parts.append(0.9 * written_kl(p[n], t_star) + (1 - 0.9) * written_ce(p[n], y))
        parts.append(written_class_ce(c_p[n], class_ids[n]))
    agree(total, [sum(parts)], *leaves)


# The line loss, which is ours ---------------------------------------------------------------------------------------


def written_off_line(latent, k):
    """Squared distance of architecture k's centre from its place, over that of the boundary centres."""
    count, size, values = latent.shape
    centres = [[sum(latent[a][n][e] for n in range(size)) / size for e in range(values)] for a in range(count)]
    gamma, distance, length = k / (count - 1), 0.0, 0.0
    for e in range(values):
        first, last = centres[0][e], centres[count - 1][e]
        distance = distance + (centres[k][e] - ((1 - gamma) * first + gamma * last)) ** 2
        length = length + (last - first) ** 2
    return distance / length


@pytest.mark.parametrize("count", [3, 5])
def test_the_line_loss(count):
    latent = leaf(count, 2, 6)
    agree(losses.loss_line(latent), [written_off_line(latent, k) for k in range(1, count - 1)], latent)


def test_the_line_loss_knows_only_the_shape_of_the_clusters():
    latent = leaf(4, 3, 6).detach()
    found = losses.loss_line(latent)
    torch.testing.assert_close(losses.loss_line(7 * latent + 2), found)
    on_line = latent.clone()
    for k in (1, 2):  # the centres are moved to their places, and instances stay about them
        on_line[k] += latent[0].mean(0) * (1 - k / 3) + latent[3].mean(0) * k / 3 - latent[k].mean(0)
    assert losses.loss_line(on_line).max() < 1e-25
    assert found.min() > 0.01


def test_the_line_loss_of_equal_embeddings_is_finite():
    latent = torch.ones(4, 2, 6, requires_grad=True)
    losses.loss_line(latent).sum().backward()
    assert torch.equal(latent.grad, torch.zeros_like(latent))


@pytest.mark.parametrize(("class_ids", "count"), [([0, 1], 2), ([1, 2], 4), ([0, 2], 4), ([], 3)])
def test_no_point_adds_nothing(class_ids, count):
    pairs, factors = losses.boundary_pairs(class_ids, count), losses.gammas(count)
    latent = leaf(len(class_ids), 6)
    between = losses.interpolate_embeddings(latent, pairs, factors)
    shape = (len(pairs), len(factors))
    assert between.shape == (*shape, 6)
    found = losses.loss_gamma(
        torch.zeros(*shape, count), factors, torch.zeros(*shape, B, C), torch.zeros(B, C), labels(B)
    )
    assert found.shape == shape
    p, c_p = leaf(2, B, C), leaf(2, A)
    kd, class_loss = losses.loss_kd(p, leaf(B, C, seed=1), labels(B)), losses.loss_class(c_p, labels(2, below=A))
    agree(losses.loss_multi(kd, class_loss, found), [kd[0] + kd[1] + class_loss[0] + class_loss[1]], p, c_p)


def test_temperature_and_alpha_are_chosen():
    p, t_star, y = leaf(N, B, C), leaf(B, C, seed=1), labels(B)
    kd = losses.loss_kd(p, t_star, y, temperature=2.0, alpha=0.3)
    at_two = losses.loss_pred_star(p, t_star, 2.0)
    torch.testing.assert_close(kd, 0.3 * at_two + 0.7 * losses.loss_task(p, y))
    torch.testing.assert_close(at_two, 4 * losses.loss_pred_star(p / 2, t_star / 2, 1.0))
    points = leaf(P, A - 2, B, C)
    ours = losses.loss_gamma(leaf(P, A - 2, A), losses.gammas(A), points, t_star, y, temperature=2.0, alpha=0.3)
    kd = 0.3 * losses.loss_pred_star(points, t_star, 2.0) + 0.7 * losses.loss_task(points, y)
    torch.testing.assert_close(ours, losses.loss_class_gamma(leaf(P, A - 2, A), losses.gammas(A)) + kd)


# Precision ---------------------------------------------------------------------------------------------------------


def all_losses(dtype):
    """Every loss on the same values, given in a dtype."""
    p, t, t_star, y = (leaf(N, B, C), leaf(N, B, C, seed=1), leaf(B, C, seed=2), labels(B))
    p, t, t_star = (x.detach().bfloat16().to(dtype) for x in (p, t, t_star))
    c_p, points = leaf(N, A).detach().bfloat16().to(dtype), torch.stack([p[:2], p[1:]])
    c_points = c_p[:2].expand(2, 2, A)
    return [
        losses.loss_pred(p, t),
        losses.loss_pred_signal(p, t),
        losses.loss_pred_star(p, t_star),
        losses.loss_task(p, y),
        losses.loss_kd(p, t_star, y),
        losses.loss_class(c_p, labels(N, below=A)),
        losses.loss_class_gamma(c_points, losses.gammas(A)),
        losses.loss_pred_star(points, t_star),
        losses.loss_task(points, y),
        losses.loss_kd(points, t_star, y),
        losses.loss_gamma(c_points, losses.gammas(A), points, t_star, y),
        losses.loss_line(p),
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_left_before_the_loss(dtype):
    for found, expected in zip(all_losses(dtype), all_losses(torch.float32), strict=True):
        assert found.dtype == torch.float32
        # bfloat16 holds the values exactly, float16 all but the least digits of the smallest
        torch.testing.assert_close(found, expected, rtol=0.0 if dtype == torch.bfloat16 else 1e-3, atol=1e-3)


def test_autocast_does_not_lower_it():
    plain = all_losses(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = all_losses(torch.bfloat16)
    for found, expected in zip(cast, plain, strict=True):
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)


def test_near_the_target_the_divergence_is_small_and_not_negative():
    t = leaf(N, 200, 10).detach().float()
    p = t + 0.01 * leaf(N, 200, 10, seed=1).detach().float()
    found, exact = losses.loss_pred(p, t), losses.loss_pred(p.double(), t.double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-2, atol=1e-7)
    assert (exact > 0).all()


def test_large_logits_stay_finite():
    p = torch.tensor([[[1e4, -1e4]]], requires_grad=True)
    loss = losses.loss_kd(p, torch.tensor([[-1e4, 1e4]]), torch.tensor([1])).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(p.grad).all()


# Errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: losses.loss_pred(leaf(N, B, C), leaf(N, B, C + 1)),
            "target logits of [3, 4, 6] do not go with predicted",
        ),
        (lambda: losses.loss_pred_star(leaf(N, B, C), leaf(C)), "give [3, 4, 5], or its last axes: [4, 5]."),
        (lambda: losses.loss_pred_star(leaf(B, C), leaf(N, B, C)), "target logits of [3, 4, 5] do not go"),
        (lambda: losses.loss_pred_signal(leaf(N, B, 1), leaf(N, B)), "target outputs of [3, 4] do not go with"),
        (
            lambda: losses.loss_task(leaf(N, B, C), labels(N)),
            "labels of [3] do not go with logits of [3, 4, 5]; give one",
        ),
        (lambda: losses.loss_class(leaf(N, A), labels(1)[0]), "labels of [] do not go with logits of [3, 4]"),
        (lambda: losses.loss_class_gamma(leaf(P, 2, 5), losses.gammas(4)), "gamma 0.333333 leads to ClassId 1.33333"),
        (
            lambda: losses.loss_class_gamma(leaf(P, 3, 4), losses.gammas(4)),
            "labels of [2] do not go with logits of [2, 3, 4]",
        ),
        (lambda: losses.interpolated_class_ids([2.0], 4), "which none of 4 architectures has; use gammas(4)."),
        (lambda: losses.gammas(1), "boundaries to interpolate between need 2 architectures at least, found 1"),
        (
            lambda: losses.boundary_pairs([0, 4], 4),
            "ClassId 4 is in the batch, but 4 architectures have ClassIds 0 to 3",
        ),
        (lambda: losses.boundary_pairs([-1], 4), "ClassId -1 is in the batch"),
    ],
)
def test_errors_say_what_to_do(call, message):
    with pytest.raises(losses.LossError) as error:
        call()
    assert message in str(error.value)
    assert isinstance(error.value, prepkit.PrepkitError)
