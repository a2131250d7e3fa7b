"""Torch's attention over sequences of several lengths, whose kernel no CPU runs: as a plain function, and
as an operator with a backward pass."""

import torch


def reference_varlen(
    query,
    key,
    value,
    cu_seq_q,
    cu_seq_k,
    max_q,
    max_k,
    *,
    scale=None,
    window_size=(-1, -1),
    enable_gqa=False,
    num_splits=None,
):
    """What flash attention documents: sequences one after another; query i of n sees keys j of m with
    i + m - n - left <= j <= i + m - n + right, query head h the keys of head h // groups."""
    assert (
        cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
        and cu_seq_q[-1] == len(query)
        and cu_seq_k[-1] == len(key) == len(value)
    )
    groups = query.shape[1] // key.shape[1]
    assert query.is_contiguous() and key.shape == value.shape and (enable_gqa or groups == 1)
    key, value = (each.repeat_interleave(groups, 1) for each in (key, value))
    assert (max_q, max_k) == (cu_seq_q.diff().max(), cu_seq_k.diff().max())
    out, (left, right) = [], window_size
    for (q0, q1), (k0, k1) in zip(zip(cu_seq_q, cu_seq_q[1:]), zip(cu_seq_k, cu_seq_k[1:])):
        weights = torch.einsum("qhd,khd->hqk", query[q0:q1], key[k0:k1]) * (
            query.shape[-1] ** -0.5 if scale is None else scale
        )
        back = torch.arange(q1 - q0)[:, None] + (k1 - k0) - (q1 - q0) - torch.arange(k1 - k0)
        weights = weights.masked_fill(
            ((back > left) & (left >= 0)) | ((back < -right) & (right >= 0)), -torch.inf
        )
        out.append(torch.einsum("hqk,khd->qhd", weights.softmax(-1), value[k0:k1]))
    return torch.cat(out)


@torch.library.custom_op("reward_kit_tests::varlen", mutates_args=())
def varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    key_starts: torch.Tensor,
    longest: int,
    longest_key: int,
) -> torch.Tensor:
    how = dict(window_size=(-1, 0), enable_gqa=True)
    return reference_varlen(query, key, value, starts, key_starts, longest, longest_key, **how)


@varlen.register_fake
def _(query, *_):
    return torch.empty_like(query)


@torch.library.custom_op("reward_kit_tests::varlen_backward", mutates_args=())
def varlen_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    key_starts: torch.Tensor,
    longest: int,
    longest_key: int,
) -> list[torch.Tensor]:
    "Of softmax attention by hand: an operator's own code records no graph."
    grads, groups = [torch.zeros_like(each) for each in (query, key, value)], query.shape[1] // key.shape[1]
    for (q0, q1), (k0, k1) in zip(zip(starts, starts[1:]), zip(key_starts, key_starts[1:])):
        q, up = query[q0:q1], gradient[q0:q1]
        k, v = (each[k0:k1].repeat_interleave(groups, 1) for each in (key, value))
        scale = query.shape[-1] ** -0.5
        later = torch.arange(q1 - q0)[:, None] + (k1 - k0) - (q1 - q0) < torch.arange(k1 - k0)
        weights = (torch.einsum("qhd,khd->hqk", q, k) * scale).masked_fill(later, -torch.inf).softmax(-1)
        slope = torch.einsum("qhd,khd->hqk", up, v)
        slope = weights * (slope - (weights * slope).sum(-1, True)) * scale
        grads[0][q0:q1] = torch.einsum("hqk,khd->qhd", slope, k)
        of_keys = torch.einsum("hqk,qhd->khd", slope, q), torch.einsum("hqk,qhd->khd", weights, up)
        for grad, each in zip(grads[1:], of_keys):
            grad[k0:k1] = each.unflatten(1, (-1, groups)).sum(2)
    return grads


@varlen_backward.register_fake
def _(gradient, query, key, value, *_):
    return [torch.empty_like(each) for each in (query, key, value)]


varlen.register_autograd(
    lambda ctx, gradient: (*varlen_backward(gradient, *ctx.saved_tensors, *ctx.longest), *[None] * 4),
    setup_context=lambda ctx, inputs, output: (
        ctx.save_for_backward(*inputs[:5]),
        setattr(ctx, "longest", inputs[5:]),
    ),
)
