"""Pseudo-labels know their images through whatever moves them; what is no move is refused, and named."""

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy, nll_loss  # as forks import them, long before anything is replaced

from kdpl.distill.interception import replace_cross_entropy
from kdpl.distill.loss import distillation_loss, divergences
from kdpl.distill.pseudo_labels import OFFSET, Agreement, PseudoLabels, UnsupportedStepError

B, C = 6, 5


def made(*allowed, kind="symmetric", temperature=1.0):
    torch.manual_seed(0)
    teacher = torch.randn(B, C) * 3
    labels, replaced = replace_cross_entropy(teacher, kind, temperature, allowed)
    return teacher, labels, replaced, torch.randn(B, C, requires_grad=True)


# ---------------------------------------------------------------------------------------------------- moving about

shifts = st.integers(-7, 7)
MOVES = {
    "index": lambda x, k: x[torch.arange(len(x)).roll(k)],
    "mask": lambda x, k: x[torch.arange(len(x)) % 2 == k % 2],
    "slice": lambda x, k: x[abs(k) % 3 :],
    "step": lambda x, k: x[:: 1 + abs(k) % 2],
    "cat": lambda x, k: torch.cat([x, x[: abs(k)]]),
    "concat": lambda x, k: torch.concat((x[:1], x), dim=0),
    "stack": lambda x, k: torch.stack([x, x.roll(k)]).flatten(),
    "stack_columns": lambda x, k: torch.stack([x, x.roll(k)], dim=1).reshape(-1),
    "repeat": lambda x, k: x.repeat(1 + abs(k) % 2),
    "repeat_interleave": lambda x, k: x.repeat_interleave(1 + abs(k) % 3),
    "expand": lambda x, k: x[None].expand(2, -1).reshape(-1),
    "chunk": lambda x, k: torch.cat(torch.chunk(x, 2)[::-1]),
    "split": lambda x, k: torch.cat([*x.split(2)][::-1]),
    "unbind": lambda x, k: torch.stack(x.unbind()),
    "iterate": lambda x, k: torch.stack([*x][::-1]),
    "view": lambda x, k: x.view(1, -1).t().squeeze(1),
    "to": lambda x, k: x.to("cpu").to(torch.int32).long().clone().detach().contiguous(),
    "flip": lambda x, k: x.flip(0),
    "select": lambda x, k: torch.index_select(x, 0, torch.arange(len(x)).flip(0)),
    "expand_as": lambda x, k: x.expand_as(torch.zeros(2, len(x))).permute(1, 0).flatten(),
    "type_as": lambda x, k: x.type_as(torch.zeros(1, dtype=torch.long)),
}


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(MOVES)), shifts), max_size=6))
def test_any_sequence_of_moves_keeps_rows_right(moves):
    """Against an independent bookkeeping: the same moves on a plain tensor of image numbers."""
    teacher, labels, replaced, _ = made()
    images = torch.arange(B)
    for name, k in moves:
        if not len(images) or len(images) > 400:
            break
        labels, images = MOVES[name](labels, k), MOVES[name](images, k)
    assert isinstance(labels, PseudoLabels)
    assert torch.equal(labels.rows, images)
    assert torch.equal(labels.as_subclass(torch.Tensor).long(), OFFSET + images), "which image, and no class"
    assert torch.equal(labels.values, teacher.argmax(1)[images])
    if len(images):
        logits = torch.randn(len(images), C)
        with replaced:
            assert torch.equal(F.cross_entropy(logits, labels), distillation_loss(logits, teacher[images])["loss"])


def test_shapes_and_types_are_told_without_ado():
    _, labels, _, _ = made()
    assert (labels.shape, labels.size(0), len(labels), labels.dim(), labels.dtype) == ((B,), B, B, 1, torch.int64)
    assert labels.device.type == "cpu" and not labels.is_cuda and "tensor" in repr(labels)
    assert type(torch.zeros_like(labels)) is type(labels.new_zeros(3)) is torch.Tensor


def test_accuracy_is_reported_as_agreement_with_the_teacher():
    from dassl.metrics import compute_accuracy

    teacher, labels, replaced, s = made()
    right = (s.argmax(1) == teacher.argmax(1)).float().mean().item()
    with replaced:
        assert compute_accuracy(teacher, labels)[0].item() == 100
        same = teacher.argmax(1) == labels
        assert isinstance(same, Agreement) and same.float().mean().item() == 1
        for predicted in (
            s.softmax(1).topk(2)[1][:, 0],
            torch.argmax(input=s, dim=-1),
            s.max(1).indices.cpu().int().view(-1),
            s.sort(dim=1, descending=True)[1].T[0],
            torch.argsort(s, 1)[:, -1:].squeeze(1),
        ):
            assert predicted.eq(labels).float().mean().item() == labels.eq(predicted).float().mean().item() == right
        each = [(p == y).item() for p, y in zip(s.argmax(1), labels, strict=True)]
        assert sum(each) / B == pytest.approx(right)


def test_predictions_are_else_as_any_tensor():
    """A choice of experts by scores, pseudo-labels of the trainer's own, a table."""
    _, _, replaced, s = made("own_targets")
    with replaced:
        chosen, weights = s.argmax(1), s.topk(2)
        assert type(chosen + 0) is type(F.one_hot(chosen, C)) is torch.Tensor
        assert torch.equal(torch.zeros(B, C).scatter_(1, weights.indices, weights.values).sum(1), weights.values.sum(1))
        assert F.cross_entropy(s, chosen).requires_grad and torch.randn(C, 2)[chosen].shape == (B, 2)
        assert type(weights).__name__ == "topk" and chosen.tolist() == [int(c) for c in chosen]


# --------------------------------------------------------------------------------------------------- what is refused

HARD = {
    "one_hot": lambda y, s: F.one_hot(y, C),
    "float": lambda y, s: y.float(),
    "half": lambda y, s: y.to(torch.float16),
    "sum": lambda y, s: 0.3 * y + 0.7 * y,
    "max": lambda y, s: y.max(),
    "tolist": lambda y, s: y.tolist(),
    "item": lambda y, s: y[0].item(),
    "numpy": lambda y, s: y.numpy(),
    "int": lambda y, s: int(y[0]),
    "gather": lambda y, s: s.log_softmax(1).gather(1, y[:, None]),
    "pick": lambda y, s: s[torch.arange(B), y],
    "scatter": lambda y, s: torch.zeros(B, C).scatter_(1, y[:, None], 1.0),
    "unique": lambda y, s: torch.unique(y),
    "where": lambda y, s: torch.where(y == 3),
    "mask": lambda y, s: s[y == y[0]],
    "own_mask": lambda y, s: y[y == 3],
    "branch": lambda y, s: bool((y == 3).any()),
    "weight": lambda y, s: ((s.argmax(1) == y).float() * s.sum(1)).mean(),
    "other_loss": lambda y, s: F.multi_margin_loss(s, y),
    "buffer": lambda y, s: torch.zeros(B, dtype=torch.long).copy_(y),
    "queue": lambda y, s: torch.zeros(2 * B, dtype=torch.long).__setitem__(slice(0, B), y),
    "table_of_others": lambda y, s: torch.randn(C + 3, 2)[y],
    "sorted": lambda y, s: y.sort(),
    "less": lambda y, s: y < 3,
    "identity": lambda y, s: torch.eye(C)[y],
    "identity_select": lambda y, s: torch.eye(C).index_select(0, y),
    "identity_embedding": lambda y, s: F.embedding(y, torch.eye(C)),
    "smoothed_identity": lambda y, s: (0.9 * torch.eye(C) + 0.1 / C)[y],
    "new_tensor": lambda y, s: torch.tensor(y),
    "new_tensor_of_entries": lambda y, s: torch.tensor([y[0], y[1]]),
    "new_tensor_of_comparisons": lambda y, s: torch.tensor(y == 3),
    "dlpack": lambda y, s: torch.from_dlpack(y),
    "native_loss": lambda y, s: torch._C._nn.cross_entropy_loss(s, y),
    "counts": lambda y, s: [(y == c).sum().item() for c in range(C)],
    "counts_of_tensors": lambda y, s: y.eq(torch.tensor(2)).sum(),
    "counts_at_once": lambda y, s: (y[None] == torch.arange(C)[:, None]).sum(1).tolist(),
    "compared_with_each_other": lambda y, s: (s @ s.t()) * (y[:, None] == y[None]),
    "counts_with_like": lambda y, s: (y == torch.full_like(y, 2)).sum().item(),
    "counts_with_full": lambda y, s: (torch.full((B,), 2) == y).sum().item(),
    "each_class_in_rows": lambda y, s: (y.expand(C, B) == torch.arange(C)[:, None].expand(C, B)).tolist(),
    "numbers_in_predictions_place": lambda y, s: (y == s.argmax(1) * 0 + 2).sum().item(),
    "one_prediction": lambda y, s: (y == s.argmax(1)[:1]).tolist(),
    "storage": lambda y, s: list(y.untyped_storage()),
    "binary_targets": lambda y, s: F.binary_cross_entropy_with_logits(s, (y[:, None] == torch.arange(C)).float()),
}


@pytest.mark.filterwarnings("ignore:To copy construct")
@pytest.mark.parametrize("use", HARD)
def test_reading_pseudo_labels_as_hard_ones_is_refused_or_allowed_and_counted(use):
    _, labels, replaced, s = made()
    with replaced, pytest.raises(UnsupportedStepError, match=r"reads labels by .* TRAINER.KDPL.ALLOW hard_labels"):
        HARD[use](labels, s)
    _, labels, replaced, s = made("hard_labels")
    with replaced:
        HARD[use](labels, s)
    assert sum(replaced.record.hard.values()) >= 1
    assert any("read as hard labels" in line for line in replaced.summary())


PAST = {
    "text": lambda y, s: f"{y} {y!r} {y[0]:d}",
    "legacy": lambda y, s: [torch.LongTensor(y), torch.Tensor(y)],
    "as_subclass": lambda y, s: y.as_subclass(torch.Tensor),
    "another_type": lambda y, s: torch.as_tensor(y, dtype=torch.float64),
    "full": lambda y, s: [torch.full((2,), y[0]), torch.scalar_tensor(y[0])],
    "set": lambda y, s: torch.zeros(B, dtype=torch.long).set_(y),
    "vmap": lambda y, s: torch.vmap(lambda a: a + 0)(y),
    "func": lambda y, s: torch.func.grad(lambda a, b: (a * (b + 0)[:, None]).sum())(s, y),
    "nested": lambda y, s: torch.nested.nested_tensor([y[:2], y[2:]]).unbind(),
    "buffer": lambda y, s: nn.Module().register_buffer("label", y),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("way", PAST)
def test_past_pytorchs_functions_a_label_is_no_class(way):
    """What such a way gives is the same, whatever the teacher says."""
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        labels, replaced = replace_cross_entropy(torch.randn(B, C))
        s = torch.ones(B, C)
        with replaced:
            found.append(PAST[way](labels, s))
    pairs = [x if isinstance(x, list | tuple) else [x] for x in found]
    for a, b in zip(*pairs, strict=True):
        assert torch.equal(a, b) and (a >= OFFSET).all() if isinstance(a, torch.Tensor) else a == b


def test_labels_that_a_transform_of_functions_made_plain_are_no_target():
    _, labels, replaced, s = made("own_targets")
    with replaced, pytest.raises(UnsupportedStepError, match=r"torch\.func or torch\.vmap"):
        torch.func.grad(F.cross_entropy)(s, labels)
    with replaced, pytest.raises(RuntimeError, match="out of bounds"):
        torch.vmap(lambda a, y: F.cross_entropy(a[None], y[None]))(s, labels)


def test_a_gradient_by_torch_func_is_that_of_the_divergence():
    teacher, labels, replaced, s = made()
    with replaced:
        found = torch.func.grad(lambda a: F.cross_entropy(a, labels))(s)
    (expected,) = torch.autograd.grad(distillation_loss(s, teacher)["loss"], s)
    assert torch.allclose(found, expected, atol=1e-7) and found.abs().max() > 1e-3


@pytest.mark.parametrize("allowed", [(), ("hard_labels",)])
def test_labels_whose_image_would_be_unknown_are_refused_in_any_case(allowed):
    _, labels, _, _ = made(*allowed)
    for change in (labels.zero_, lambda: labels.__setitem__(0, 1), lambda: labels.add_(1)):
        with pytest.raises(UnsupportedStepError, match="in place"):
            change()
    with pytest.raises(UnsupportedStepError, match="joins pseudo-labels with other tensors by cat"):
        torch.cat([labels, torch.zeros(2, dtype=torch.long)])


CALLS = {
    "class weights": lambda y, s: F.cross_entropy(s, y, weight=torch.ones(C)),
    "F.cross_entropy got class weights": lambda y, s: nn.CrossEntropyLoss(torch.ones(C))(s, y),
    "F.nll_loss got class weights": lambda y, s: nn.NLLLoss(torch.ones(C))(s.log_softmax(1), y),
    "label_smoothing 0.2": lambda y, s: nn.CrossEntropyLoss(label_smoothing=0.2)(s, y),
    r"logits \(6, 4\), expected \(rows, 5\)": lambda y, s: F.cross_entropy(s[:, :4], y),
    r"logits \(6, 5, 1\)": lambda y, s: F.cross_entropy(s[..., None], y[..., None]),
    r"\(4,\) labels for 6 rows": lambda y, s: F.cross_entropy(s, y[:4]),
    "which image is each row of": lambda y, s: F.cross_entropy(s, torch.zeros(B, dtype=torch.long)),
    "TRAINER.KDPL.ALLOW own_targets": lambda y, s: F.cross_entropy(s, s.softmax(1).detach()),
    "label_smoothing 0.1": lambda y, s: F.cross_entropy(s, y, label_smoothing=0.1),
    "ignores class 2": lambda y, s: F.cross_entropy(s, y, ignore_index=2),
    "not log-probabilities": lambda y, s: F.nll_loss(s, y),
}


@pytest.mark.parametrize("message", CALLS)
def test_calls_without_a_meaning_are_refused_by_name(message):
    _, labels, replaced, s = made()
    with replaced, pytest.raises(UnsupportedStepError, match=message):
        CALLS[message](labels, s)


def test_soft_targets_made_of_hard_labels_are_still_targets_of_its_own():
    """Mixup as one call: allowed to read hard labels, a trainer may not put a distribution of them in the teacher's place."""
    _, labels, replaced, s = made("hard_labels")
    with replaced:
        soft = 0.7 * F.one_hot(labels, C).float() + 0.3 * F.one_hot(labels.roll(1), C).float()
        with pytest.raises(UnsupportedStepError, match="which image is each row of"):
            F.cross_entropy(s, soft)


def test_a_step_without_any_call_is_refused():
    _, _, replaced, s = made()
    with replaced:
        F.mse_loss(s, s.detach())
    with pytest.raises(UnsupportedStepError, match=r"PromptKD called neither F.cross_entropy nor"):
        replaced.check("PromptKD")


# ------------------------------------------------------------------------------------------------------ what is replaced


@pytest.mark.filterwarnings("ignore:size_average and reduce args")
@pytest.mark.parametrize("kind", ["symmetric", "forward", "reverse"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_every_reduction_gives_the_same_loss(kind, temperature):
    teacher, labels, replaced, s = made(kind=kind, temperature=temperature)
    expected = distillation_loss(s, teacher, kind, temperature)["loss"]
    each = torch.stack(
        [distillation_loss(a[None], b[None], kind, temperature)["loss"] for a, b in zip(s, teacher, strict=True)]
    )
    assert torch.allclose(divergences(s, teacher, kind, temperature), each, atol=1e-6)
    with replaced:
        for loss in (
            F.cross_entropy(s, labels),
            nn.CrossEntropyLoss()(s, labels),
            F.nll_loss(s.log_softmax(1), labels),
            nn.NLLLoss()(s.log_softmax(1), labels),
            F.cross_entropy(s, labels, reduction="sum") / B,
            F.cross_entropy(s, labels, size_average=False) / B,
            F.cross_entropy(s, labels, reduction="none").mean(),
            F.cross_entropy(s, labels, reduce=False).mean(),
            F.cross_entropy(torch.cat([s, s]), torch.cat([labels, labels])),
            torch.stack([F.cross_entropy(s[i : i + 1], labels[i : i + 1]) for i in range(B)]).mean(),
            cross_entropy(s, labels),
            cross_entropy(target=labels, input=s),
            nll_loss(s.log_softmax(1), labels, None, None, -100, False).mean(),
            nn.CrossEntropyLoss(reduction="none")(s, labels).sum() / B,
            nn.CrossEntropyLoss(reduce=False)(s, torch.as_tensor(labels)).mean(),
        ):
            assert torch.allclose(loss, expected, atol=1e-5)
        assert torch.equal(F.cross_entropy(s, labels), expected)
    assert sum(replaced.calls.values()) == 15 + B


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1), st.permutations(range(B)))
def test_a_mixture_of_losses_is_the_same_mixture_of_divergences(lam, order):
    teacher, labels, replaced, s = made()
    with replaced:
        mixed = lam * F.cross_entropy(s, labels) + (1 - lam) * F.cross_entropy(s, labels[list(order)])
    other = distillation_loss(s, teacher[list(order)])["loss"]
    assert torch.allclose(mixed, lam * distillation_loss(s, teacher)["loss"] + (1 - lam) * other)


def test_own_targets_and_smoothing_are_let_through_where_allowed():
    teacher, labels, replaced, s = made("own_targets", "label_smoothing")
    with replaced:
        own = F.cross_entropy(s, torch.zeros(B, dtype=torch.long))
        smooth = F.cross_entropy(s, labels, label_smoothing=0.1)
    assert torch.equal(own, F.cross_entropy(s, torch.zeros(B, dtype=torch.long)))
    assert torch.equal(smooth, distillation_loss(s, teacher)["loss"])
    assert [replaced.own_calls, replaced.smoothed_calls] == [1, 1]
    assert "smoothing was ignored in 1" in "\n".join(replaced.summary())


def test_rows_of_a_table_of_classes_are_taken_and_counted():
    teacher, labels, replaced, _ = made("lookups")
    with replaced:
        for table in (torch.randn(C, 3), torch.randn(C, C)):
            assert torch.equal(table[labels], table[teacher.argmax(1)])
            assert torch.equal(F.embedding(labels, table), table[teacher.argmax(1)])
    assert replaced.record.lookups == {"__getitem__": 2, "embedding": 2} and not replaced.record.hard
    assert "chose entries of other tensors: 2 x __getitem__" in "\n".join(replaced.summary())


def test_a_label_in_a_slice_is_a_class_where_that_is_allowed():
    teacher, labels, replaced, _ = made("hard_labels")
    table, first = torch.randn(C, 3), int(teacher.argmax(1)[0])
    with replaced:
        assert torch.equal(table[labels[0] : labels[0] + 1], table[first : first + 1])


LOOKUPS = {
    "text_features": lambda y, s: torch.randn(C, 3)[y],
    "diagonal": lambda y, s: s.log_softmax(1).T[y].diag(),
    "pick": lambda y, s: s[torch.arange(B), y],
    "gather": lambda y, s: s.gather(1, y[:, None]),
    "embedding": lambda y, s: F.embedding(y, torch.randn(C, 3)),
    "padded_identity": lambda y, s: torch.cat([torch.eye(C), torch.zeros(1, C)])[y],
    "select": lambda y, s: torch.index_select(torch.randn(C, 2), 0, index=y),
    "take": lambda y, s: torch.take(torch.randn(C), y),
}


@pytest.mark.parametrize("use", LOOKUPS)
def test_pseudo_labels_as_an_index_are_refused_unless_allowed_by_name(use):
    """Whatever the table is: what it holds is no matter of the check."""
    _, labels, replaced, s = made()
    with replaced, pytest.raises(UnsupportedStepError, match=r"as an index.* set TRAINER.KDPL.ALLOW lookups; .* hard_labels"):
        LOOKUPS[use](labels, s)
    _, labels, replaced, s = made("lookups")
    with replaced:
        LOOKUPS[use](labels, s)
    assert sum(replaced.record.lookups.values()) == 1


def test_outside_of_the_context_pseudo_labels_are_not_a_target():
    _, labels, _, s = made()
    with pytest.raises(UnsupportedStepError, match="cross_entropy"):
        F.cross_entropy(s, labels)


# ------------------------------------------------------------------------------- where nothing of the step's is on the stack


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("allowed", [(), ("hard_labels",)])
def test_a_loss_that_a_checkpoint_computes_again_is_the_divergence_there_too(reentrant, allowed):
    """Loss and gradient against an independent computation in double precision."""
    teacher, labels, replaced, _ = made(*allowed)
    weight = torch.randn(3, C, dtype=torch.float64, requires_grad=True)
    images = torch.randn(B, 3, dtype=torch.float64)
    t = teacher.double().log_softmax(1)
    logits = images @ weight
    p = logits.log_softmax(1)
    expected = (0.5 * t.exp() * (t - p) + 0.5 * p.exp() * (p - t)).sum(1).mean()
    (gradient,) = torch.autograd.grad(expected, weight)

    def loss(weight, y):
        return F.cross_entropy(images @ weight, y)

    with replaced:
        found = torch.utils.checkpoint.checkpoint(loss, weight, labels, use_reentrant=reentrant)
        found.backward()
    assert abs(found.item() - expected.item()) < 1e-6 and (weight.grad - gradient).abs().max() < 1e-6
    assert sum(replaced.calls.values()) == 1


def test_a_backward_pass_of_its_own_learns_nothing_of_the_labels():
    """There no mode of PyTorch's is entered."""

    class Weighted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, s, y, read):
            ctx.labels, ctx.read = y, read
            return s * 1

        @staticmethod
        def backward(ctx, gradient):
            return gradient * ctx.read(ctx.labels), None, None

    for read in (
        lambda y: (y == torch.full_like(y, 2)).sum().item(),
        lambda y: (y == torch.ones(B, C).argmax(1)).float().mean(),
        lambda y: torch.tensor([*y])[0],
        lambda y: torch.eye(C)[y].sum(),
    ):
        _, labels, replaced, s = made()
        with replaced, pytest.raises(UnsupportedStepError, match="reads labels by"):
            Weighted.apply(s, labels, read).sum().backward()


def test_a_loss_in_another_thread_of_the_step_is_replaced():
    """As that of nn.DataParallel, or of a backward pass on a GPU."""
    from concurrent.futures import ThreadPoolExecutor

    teacher, labels, replaced, s = made()
    with replaced, ThreadPoolExecutor() as threads:
        assert torch.equal(threads.submit(F.cross_entropy, s, labels).result(), distillation_loss(s, teacher)["loss"])
    replaced.check()


def test_a_compiled_step_runs_as_it_is_written():
    teacher, labels, replaced, s = made()

    @torch.compile(fullgraph=True)
    def step(logits, y):
        return F.cross_entropy(2 * logits, y)

    with replaced:
        loss = step(s, labels)
    assert torch.equal(loss, distillation_loss(2 * s, teacher)["loss"])


def test_a_focal_loss_is_said_to_be_one_of_divergences():
    _, labels, replaced, s = made()
    with replaced:
        rows = F.cross_entropy(s, labels, reduction="none")
        ((1 - (-rows).exp()) ** 2 * rows).mean().backward()
    assert "such as a focal term, is a function of divergences" in "\n".join(replaced.summary())
    _, labels, replaced, s = made()
    with replaced:
        F.cross_entropy(s, labels)
    assert "focal" not in "\n".join(replaced.summary())
