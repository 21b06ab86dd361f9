"""Work on a GPU, on one that is simulated: tensors are where CUDA wants them, and the numbers are the CPU's.

`scripts/simulated_card.sh` runs other tests, or all of them, on it.
"""

import pytest
from support.card import needs_simulated_card, run_on_card, run_tests_on_card

pytestmark = [pytest.mark.slow, needs_simulated_card]
REFUSED = {
    "a tensor of the CPU": "torch.randn(2, 2).cuda() @ torch.eye(2)",
    "a list with one": "torch.cat([torch.ones(1, device='cuda'), torch.ones(1)])",
    "a result on the CPU": "torch.add(torch.ones(1, device='cuda'), 1, out=torch.ones(1))",
    "numpy": "torch.ones(1, device='cuda').numpy()",
    "a generator of the CPU": "torch.randn(2, device='cuda', generator=torch.Generator())",
    "products of integers": "(x := torch.ones(2, 2, device='cuda', dtype=torch.long)) @ x",
    "layer norm of two types": "F.layer_norm(torch.ones(2, device='cuda').half(), (2,), torch.ones(2, device='cuda'))",
}
TAKEN = {
    "a number of the CPU": ("torch.ones(2, device='cuda') * torch.tensor(3.0)", {}),
    "a number for the host": ("float(torch.ones(1, device='cuda'))", {"_local_scalar_dense": 1}),
    "a copy for the host": ("torch.ones(2, device='cuda').cpu()", {"copy to the CPU": 1}),
    "a mask": ("(x := torch.ones(2, device='cuda'))[x > 0]", {"index by a mask": 1}),
    "a copy from the host": ("torch.ones(2).cuda(non_blocking=True)", {"copy from pageable memory": 1}),
    "one from pinned memory": ("torch.ones(2).pin_memory().cuda(non_blocking=True)", {}),
}
PROGRAM = """
import json, os
import torch, simulated_card
import torch.nn.functional as F
for code in {refused}:
    try:
        eval(code)
    except (RuntimeError, TypeError):
        continue
    raise SystemExit(f"not refused: {{code}}")
for code, expected in {taken}:
    with simulated_card.counted() as counts:
        eval(code)
    found = {{kind: n for (kind, _), n in counts.waits.items()}}
    assert found == expected, (code, found)
layer, x = torch.nn.Linear(3, 3).cuda(), torch.ones(2, 4, 5, 8, device="cuda")
with simulated_card.counted() as counts:
    layer(x[0, 0, :, :3]).t()
assert (counts.kernels, counts.operations["aten.addmm.default"]) == (1, 1) and counts.others > 2, counts
with simulated_card.counted() as counts:
    F.scaled_dot_product_attention(x, x, x, is_causal=True)
assert counts.kernels == 1, counts
"""


def test_the_card_refuses_what_cuda_refuses_and_counts_launches_and_waits():
    run_on_card("-c", PROGRAM.format(refused=list(REFUSED.values()), taken=list(TAKEN.values())))


PARTS = {"steps": "learner", "others": "not learner"}


@pytest.mark.parametrize("part", PARTS)
def test_work_on_a_card_is_that_on_the_cpu(part):
    """Steps, a resume, class-agnostic steps, views, an evaluation, predictions and a wrapped trainer, to 1e-5."""
    run_tests_on_card("sample.py", PARTS[part])
