"""Losses against brute-force references in plain Python floats (float64), their gradients, invariances
and extremes."""

import itertools
import math

import pytest
import torch

from reward_kit.model.loss import (
    LOSSES,
    bradley_terry_loss,
    centering_loss,
    davidson_loss,
    pairwise_accuracy,
    plackett_luce_loss,
    regression_loss,
    reward_loss,
)

COMPARING = ["bradley_terry", "plackett_luce", "davidson"]
KEYWORDS = [
    ("bradley_terry", {}),
    ("bradley_terry", {"label_smoothing": 0.2}),
    ("plackett_luce", {}),
    ("davidson", {}),
    ("davidson", {"tie_parameter": 0.3}),
    ("regression", {}),
]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def bradley_terry_row(r, ranks, keep, margin, label_smoothing=0.0):
    losses = []
    for i, j in itertools.permutations(keep, 2):
        if ranks[i] < ranks[j]:
            z = r[i] - r[j] - margin
            losses.append((1 - label_smoothing) * softplus(-z) + label_smoothing * softplus(z))
    return sum(losses) / len(losses) if losses else None


def plackett_luce_row(r, ranks, keep, margin):
    losses = []
    for i in keep:
        below = [j for j in keep if ranks[j] > ranks[i]]
        if below:
            losses.append(
                -math.log(math.exp(r[i]) / (math.exp(r[i]) + sum(math.exp(r[j] + margin) for j in below)))
            )
    return sum(losses) if losses else None


def davidson_row(r, ranks, keep, margin, tie_parameter=1.0):
    losses = []
    for i, j in itertools.combinations(keep, 2):
        if ranks[i] > ranks[j]:
            i, j = j, i
        d = r[i] - r[j] - (0 if ranks[i] == ranks[j] else margin)
        win, tie, loss = math.exp(d), tie_parameter * math.sqrt(math.exp(d)), 1.0
        losses.append(-math.log((tie if ranks[i] == ranks[j] else win) / (win + tie + loss)))
    return sum(losses) / len(losses) if losses else None


def regression_row(r, targets, keep):
    return sum((r[i] - targets[i]) ** 2 for i in keep) / len(keep) if keep else None


ROWS = {"bradley_terry": bradley_terry_row, "plackett_luce": plackett_luce_row, "davidson": davidson_row}


def batch(b=64, K=5, seed=0):
    """Rewards, ranks with ties, a mask that also leaves rows with one or no response, targets, margin
    and weight, all float64."""
    g = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.rand(*shape, generator=g, dtype=torch.float64)
    mask = rand(b, K) < 0.8
    mask[0], mask[1] = False, torch.arange(K) == 2
    return {
        "rewards": 6 * rand(b, K) - 3,
        "ranks": torch.randint(1, 4, (b, K), generator=g),
        "mask": mask,
        "targets": 4 * rand(b, K),
        "margin": rand(b),
        "weight": 3 * rand(b),
    }


def reference(name, data, **keywords):
    rows = []
    for n in range(len(data["rewards"])):
        keep = [k for k, m in enumerate(data["mask"][n].tolist()) if m]
        r = data["rewards"][n].tolist()
        if name == "regression":
            rows.append(regression_row(r, data["targets"][n].tolist(), keep))
        else:
            rows.append(ROWS[name](r, data["ranks"][n].tolist(), keep, data["margin"][n].item(), **keywords))
    return rows


def call(name, data, **keywords):
    shared = {
        k: v for k, v in data.items() if k != "rewards" and not (name == "regression" and k == "margin")
    }
    return LOSSES[name](data["rewards"], **shared, **keywords)


@pytest.mark.parametrize("name,keywords", KEYWORDS)
def test_against_brute_force(name, keywords):
    data = batch()
    rows, weight = reference(name, data, **keywords), data["weight"].tolist()
    assert rows[0] is None and (rows[1] is None) == (name != "regression")
    weighted = [0.0 if row is None else w * row for row, w in zip(rows, weight)]
    total = sum(w for row, w in zip(rows, weight) if row is not None)
    exact = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(
        call(name, data, reduction="none", **keywords), torch.tensor(weighted, dtype=torch.float64), **exact
    )
    assert call(name, data, reduction="sum", **keywords).item() == pytest.approx(sum(weighted), rel=1e-12)
    assert call(name, data, **keywords).item() == pytest.approx(sum(weighted) / total, rel=1e-12)
    single = {**data, "rewards": data["rewards"].float()}
    assert call(name, single, **keywords).dtype == torch.float32
    assert call(name, single, **keywords).item() == pytest.approx(sum(weighted) / total, rel=1e-5)


@pytest.mark.parametrize("name,keywords", KEYWORDS)
def test_gradients(name, keywords):
    data = batch(b=6, K=4, seed=1)
    rewards = data.pop("rewards").requires_grad_()
    assert torch.autograd.gradcheck(lambda r: call(name, {"rewards": r, **data}, **keywords), rewards)
    assert torch.autograd.gradcheck(
        lambda r: reward_loss(r, center_rewards_coefficient=0.3, mask=data["mask"]), rewards
    )


def test_gradient_of_the_tie_parameter():
    data = batch(b=6, K=4, seed=2)
    rewards, nu = (
        data.pop("rewards").requires_grad_(),
        torch.tensor(0.7, dtype=torch.float64, requires_grad=True),
    )
    assert torch.autograd.gradcheck(lambda r, nu: davidson_loss(r, tie_parameter=nu, **data), (rewards, nu))


def test_same_numbers_as_trl():
    """TRL's RewardTrainer: -logsigmoid(chosen - rejected - margin).mean() + coefficient * mean((chosen
    + rejected) ** 2)."""
    rewards, margin = torch.randn(32, 2), torch.rand(32)
    chosen, rejected = rewards.unbind(1)
    expected = -torch.nn.functional.logsigmoid(chosen - rejected - margin).mean() + 0.01 * torch.mean(
        (chosen + rejected) ** 2
    )
    torch.testing.assert_close(reward_loss(rewards, margin=margin, center_rewards_coefficient=0.01), expected)


def test_plackett_luce_is_a_distribution_and_reduces_to_bradley_terry():
    rewards = torch.randn(1, 4, dtype=torch.float64)
    every = torch.tensor(list(itertools.permutations([1, 2, 3, 4])))
    losses = plackett_luce_loss(rewards.expand(24, 4), ranks=every, reduction="none")
    assert (-losses).exp().sum().item() == pytest.approx(1.0, rel=1e-12)
    # ranks 1, 2, 2, 2 is "the first is the best of four": the sum over the orders that begin with it, and a
    # softmax
    best = -plackett_luce_loss(rewards, ranks=torch.tensor([[1, 2, 2, 2]])).item()
    assert math.exp(best) == pytest.approx((-losses[every[:, 0] == 1]).exp().sum().item(), rel=1e-12)
    assert best == pytest.approx(rewards.log_softmax(1)[0, 0].item(), rel=1e-12)
    pairs, ranks, margin = torch.randn(40, 2), torch.randint(1, 3, (40, 2)), torch.rand(40)
    keywords = {"ranks": ranks, "margin": margin, "reduction": "none"}
    torch.testing.assert_close(plackett_luce_loss(pairs, **keywords), bradley_terry_loss(pairs, **keywords))


def test_plackett_luce_never_overstates_a_tied_order():
    rewards, ranks = torch.randn(50, 4, dtype=torch.float64), torch.tensor([1, 1, 2, 3])
    ours = (-plackett_luce_loss(rewards, ranks=ranks.expand(50, 4), reduction="none")).exp()
    orders = torch.tensor([[1, 2, 3, 4], [2, 1, 3, 4]])
    exact = sum((-plackett_luce_loss(rewards, ranks=o.expand(50, 4), reduction="none")).exp() for o in orders)
    assert bool((ours < exact).all())


def test_davidson_outcomes_sum_to_one_and_meet_bradley_terry():
    pairs, outcomes = torch.randn(30, 2, dtype=torch.float64), torch.tensor([[1, 2], [1, 1], [2, 1]])
    win, tie, loss = (
        (-davidson_loss(pairs, ranks=o.expand(30, 2), tie_parameter=0.4, reduction="none")).exp()
        for o in outcomes
    )
    torch.testing.assert_close(win + tie + loss, torch.ones_like(win))
    torch.testing.assert_close(win / loss, (pairs[:, 0] - pairs[:, 1]).exp())
    torch.testing.assert_close(davidson_loss(pairs, tie_parameter=1e-30), bradley_terry_loss(pairs))
    equal = davidson_loss(torch.zeros(1, 2), ranks=torch.ones(1, 2), tie_parameter=0.5)
    assert equal.item() == pytest.approx(math.log(5))  # 0.5 / (2 + 0.5) = 1/5


def test_small_losses_keep_their_digits_in_float32():
    pairs = torch.tensor([[20.0, 0.0]])
    assert bradley_terry_loss(pairs).item() == pytest.approx(math.log1p(math.exp(-20)), rel=1e-5)
    assert plackett_luce_loss(pairs).item() == pytest.approx(math.log1p(math.exp(-20)), rel=1e-5)
    assert davidson_loss(pairs).item() == pytest.approx(math.log1p(math.exp(-20) + math.exp(-10)), rel=1e-5)


# Right values at a difference of 1e4, worked out by hand: (loss, gradient of the first reward) when the first
# is better by 1e4, worse by 1e4.
EXTREMES = [
    ("bradley_terry", {}, [1, 2], (0, 0), (1e4, -1)),
    ("bradley_terry", {"label_smoothing": 0.1}, [1, 2], (1e3, 0.1), (9e3, -0.9)),
    ("plackett_luce", {}, [1, 2], (0, 0), (1e4, -1)),
    ("davidson", {}, [1, 2], (0, 0), (1e4, -1)),
    ("davidson", {}, [1, 1], (5e3, 0.5), (5e3, -0.5)),
]


@pytest.mark.parametrize("name,keywords,ranks,better,worse", EXTREMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_differences(name, keywords, ranks, better, worse, dtype):
    rewards = torch.tensor([[5000.0, -5000.0], [-5000.0, 5000.0]], dtype=dtype, requires_grad=True)
    d = rewards.detach().float()[0, 0].item() * 2  # bfloat16 rounds 5000 to 4992
    losses = LOSSES[name](rewards, ranks=torch.tensor([ranks, ranks]), reduction="none", **keywords)
    losses.sum().backward()
    assert losses.dtype == torch.float32 and rewards.grad.dtype == dtype
    assert losses.tolist() == pytest.approx([better[0] * d / 1e4, worse[0] * d / 1e4], rel=1e-6)
    assert rewards.grad[:, 0].tolist() == pytest.approx([better[1], worse[1]], rel=4e-3)
    assert rewards.grad.sum(1).tolist() == pytest.approx([0, 0], abs=1e-6)


@pytest.mark.parametrize("name", [*COMPARING, "regression"])
def test_long_extreme_rankings_are_finite(name):
    rewards = torch.linspace(-1e4, 1e4, 8).flip(0).repeat(2, 1)
    rewards[1] = rewards[1].flip(0)
    rewards.requires_grad_()
    loss = LOSSES[name](rewards, targets=torch.zeros(2, 8))
    loss.backward()
    assert loss.isfinite() and rewards.grad.isfinite().all()


def test_half_precision_inputs_are_computed_in_float32():
    rewards = torch.tensor(
        [[20.0, 19.875]], dtype=torch.bfloat16
    )  # exact in bfloat16, as is their difference
    assert bradley_terry_loss(rewards, margin=torch.tensor([0.001])).item() == pytest.approx(
        softplus(-0.124), rel=1e-6
    )
    with torch.autocast("cpu", torch.bfloat16):
        inside = bradley_terry_loss(rewards.float(), margin=torch.tensor([0.001]))
    assert inside.dtype == torch.float32 and inside.item() == pytest.approx(softplus(-0.124), rel=1e-6)


@pytest.mark.parametrize("name", [*COMPARING, "regression", "centering"])
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_absent_responses_contribute_nothing(name, garbage):
    function = centering_loss if name == "centering" else LOSSES[name]
    extra = {} if name == "centering" else {"ranks": torch.tensor([[2, 1, 1, 3]] * 3)}
    if name == "regression":
        extra["targets"] = torch.tensor([[1.0, garbage, 0.0, 2.0]] * 3)
    rewards = torch.tensor(
        [[0.7, garbage, -1.0, 2.0], [0.1, garbage, 0.2, 0.3], [garbage] * 4], requires_grad=True
    )
    mask = torch.tensor([[True, False, True, True], [True, False, True, True], [False] * 4])
    loss = function(rewards, mask=mask, **extra)
    loss.backward()
    without = {k: v[:2, [0, 2, 3]] for k, v in extra.items()}
    torch.testing.assert_close(loss.detach(), function(rewards.detach()[:2, [0, 2, 3]], **without))
    assert (
        bool((rewards.grad[~mask] == 0).all())
        and rewards.grad.isfinite().all()
        and rewards.grad[:2, 0].abs().min() > 0
    )


@pytest.mark.parametrize("name", COMPARING)
def test_nothing_to_learn_is_zero_with_zero_gradient(name):
    rewards = torch.randn(3, 3, requires_grad=True)
    mask = torch.zeros(3, 3, dtype=torch.bool).index_fill_(1, torch.tensor([1]), True)
    for reduction in ("mean", "sum"):
        loss = LOSSES[name](rewards, mask=mask, reduction=reduction)
        assert loss.item() == 0 and torch.autograd.grad(loss, rewards)[0].abs().max() == 0
    tied = LOSSES[name](rewards, ranks=torch.ones(3, 3))
    assert (tied.item() > 0) == (name == "davidson")
    assert LOSSES[name](torch.zeros(0, 2, requires_grad=True)).item() == 0


@pytest.mark.parametrize("name", [*COMPARING, "regression"])
def test_weights(name):
    data = batch(seed=3)
    loss, weight = call(name, data), data["weight"]
    torch.testing.assert_close(call(name, {**data, "weight": 7 * weight}), loss)
    torch.testing.assert_close(
        call(name, {**data, "weight": torch.ones_like(weight)}), call(name, {**data, "weight": None})
    )
    first = weight.clone()
    first[32:] = 0  # a weight of zero is the same as not being there
    half = {k: v[:32] for k, v in data.items()}
    torch.testing.assert_close(call(name, {**data, "weight": first}), call(name, half))
    double = torch.cat(
        [torch.arange(64), torch.arange(32)]
    )  # a weight of two is the same as being there twice
    twice = {k: v[double] for k, v in {**data, "weight": torch.ones_like(weight)}.items()}
    torch.testing.assert_close(
        call(name, twice), call(name, {**data, "weight": 1 + (torch.arange(64) < 32).double()})
    )


@pytest.mark.parametrize("name", [*COMPARING, "regression"])
def test_sums_of_micro_batches_add_up(name):
    data = batch(seed=4)
    parts = [
        call(name, {k: v[s] for k, v in data.items()}, reduction="sum")
        for s in (slice(0, 10), slice(10, 50), slice(50, 64))
    ]
    torch.testing.assert_close(sum(parts), call(name, data, reduction="sum"))


@pytest.mark.parametrize("name", COMPARING)
def test_invariances(name):
    data = batch(seed=5)
    loss = call(name, data)
    torch.testing.assert_close(call(name, {**data, "rewards": data["rewards"] + torch.randn(64, 1)}), loss)
    torch.testing.assert_close(call(name, {**data, "ranks": 10 * data["ranks"] - 3}), loss)
    moved = {k: v[:, torch.tensor([3, 1, 4, 0, 2])] if v.dim() == 2 else v for k, v in data.items()}
    torch.testing.assert_close(call(name, moved), loss)
    wider = {k: torch.cat([v, v[:, :2]], 1) if v.dim() == 2 else v for k, v in data.items()}
    wider["mask"] = torch.cat([data["mask"], torch.zeros(64, 2, dtype=torch.bool)], 1)
    torch.testing.assert_close(call(name, wider), loss)
    rows = torch.randperm(64)
    torch.testing.assert_close(call(name, {k: v[rows] for k, v in data.items()}), loss)


def test_batch_tensors_a_loss_has_no_use_for_change_nothing():
    data = batch(seed=6)
    for name in COMPARING:
        assert call(name, data).equal(call(name, {**data, "targets": None}))
    assert call("regression", data).equal(call("regression", {**data, "ranks": None}))


def test_centering():
    data = batch(seed=7)
    rows = []
    for r, keep, w in zip(data["rewards"].tolist(), data["mask"].tolist(), data["weight"].tolist()):
        present = [x for x, k in zip(r, keep) if k]
        if present:
            rows.append((w, (2 * sum(present) / len(present)) ** 2))
    expected = sum(w * l for w, l in rows) / sum(w for w, _ in rows)
    assert centering_loss(data["rewards"], mask=data["mask"], weight=data["weight"]).item() == pytest.approx(
        expected, rel=1e-12
    )
    rewards = torch.randn(1, 5, dtype=torch.float64, requires_grad=True)
    centering_loss(rewards).backward()
    assert rewards.grad.std().item() == pytest.approx(
        0, abs=1e-12
    )  # every response is pulled alike: differences stay


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reward_loss_is_loss_plus_centering(name, reduction):
    data = batch(seed=8)
    if name == "regression":
        data["margin"] = None
    rewards = data.pop("rewards")
    plain = LOSSES[name](rewards, reduction=reduction, **data)
    torch.testing.assert_close(
        reward_loss(rewards, loss_type=name, reduction=reduction, **data), plain, rtol=1e-14, atol=1e-14
    )
    center = centering_loss(rewards, mask=data["mask"], weight=data["weight"], reduction=reduction)
    torch.testing.assert_close(
        reward_loss(rewards, loss_type=name, center_rewards_coefficient=0.5, reduction=reduction, **data),
        plain + 0.5 * center,
    )


def test_plain_lists_and_one_response_for_regression():
    assert bradley_terry_loss(
        torch.zeros(1, 2), ranks=[[2, 1]], margin=[0.0], weight=[2.0]
    ).item() == pytest.approx(math.log(2))
    assert regression_loss(torch.tensor([[3.0], [1.0]]), targets=[[1.0], [1.0]]).item() == 2.0


SHAPES = {"ranks": (3, 2), "mask": (4, 3), "weight": (4, 2), "margin": (2,), "targets": (4, 1)}
USED = [(name, a) for name in COMPARING for a in ("ranks", "mask", "weight", "margin")] + [
    ("regression", a) for a in ("mask", "weight", "targets")
]


@pytest.mark.parametrize("name,argument", USED)
def test_wrong_shapes_name_the_argument(name, argument):
    value = torch.ones(SHAPES[argument], dtype=torch.bool if argument == "mask" else torch.float32)
    keywords = {"targets": torch.zeros(4, 2)} if name == "regression" else {}
    with pytest.raises(ValueError, match=f"{argument} must have shape .* got \\({SHAPES[argument][0]},"):
        LOSSES[name](torch.zeros(4, 2), **{**keywords, argument: value})


@pytest.mark.parametrize("name", COMPARING)
def test_one_reward_a_row_is_an_error(name):
    for shape in ((4,), (4, 1), (2, 2, 2)):
        with pytest.raises(ValueError, match="must have shape .b, K.*torch.stack"):
            LOSSES[name](torch.zeros(shape))
    with pytest.raises(TypeError, match="floating point tensor, got list"):
        LOSSES[name]([[1.0, 2.0]])


def accuracy_by_hand(rewards, ranks, mask):
    correct = total = 0
    for r, k, m in zip(rewards.tolist(), ranks.tolist(), mask.tolist()):
        for i, j in itertools.permutations([n for n, keep in enumerate(m) if keep], 2):
            if k[i] < k[j]:
                correct, total = correct + (1 if r[i] > r[j] else 0.5 if r[i] == r[j] else 0), total + 1
    return correct, total


def test_accuracy_against_brute_force_and_in_parts():
    data = batch(b=300, seed=9)
    rewards, keywords = (
        data["rewards"].round(),
        {
            "ranks": data["ranks"],
            "mask": data["mask"],
        },
    )  # rounded: many ties of rewards
    correct, total = pairwise_accuracy(rewards, **keywords)
    assert (correct.item(), total.item()) == accuracy_by_hand(rewards, **keywords)
    by_row = pairwise_accuracy(rewards, reduction="none", **keywords)
    assert [x.sum().item() for x in by_row] == [correct.item(), total.item()]
    parts = [
        pairwise_accuracy(rewards[s], **{k: v[s] for k, v in keywords.items()})
        for s in (slice(0, 7), slice(7, 300))
    ]
    assert [sum(p[n].item() for p in parts) for n in (0, 1)] == [correct.item(), total.item()]


def test_accuracy_of_constant_infinite_and_nan_rewards():
    assert [x.item() for x in pairwise_accuracy(torch.full((4, 3), 0.7, dtype=torch.bfloat16))] == [6.0, 12]
    assert [x.item() for x in pairwise_accuracy(torch.tensor([[math.inf, math.inf], [0, -math.inf]]))] == [
        1.5,
        2,
    ]
    nan = torch.tensor([[math.nan, 0.0], [1.0, 0.0], [math.nan, math.nan]])
    assert pairwise_accuracy(nan)[0].isnan()
    assert pairwise_accuracy(nan, reduction="none")[0].isnan().tolist() == [True, False, True]
    tied = torch.tensor([[1, 1], [1, 2], [3, 3]])  # the pairs with a NaN are not compared
    assert [x.item() for x in pairwise_accuracy(nan, ranks=tied)] == [1.0, 1]
    assert not pairwise_accuracy(torch.randn(4, 2, requires_grad=True))[0].requires_grad
