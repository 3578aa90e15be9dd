"""GRPO's loss types against the loss code of trl's `GRPOTrainer` on the same numbers."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from reward_model.training.methods.policy_loss import policy_loss

trl = pytest.importorskip("trl", reason="trl is a test-only reference")

pytestmark = pytest.mark.parity

LENGTHS, LONGEST = (5, 2, 7, 1), 9
HIGH = {"grpo": None, "bnpo": None, "dr_grpo": None, "dapo": 0.28}


def numbers():
    """Return log-probs of policy, old policy and reference [4, 9], advantages [4] and the mask of real tokens."""
    generator = torch.Generator().manual_seed(0)
    now, old, reference = (-2 + 0.4 * torch.randn(len(LENGTHS), LONGEST, generator=generator) for _ in range(3))
    mask = torch.arange(LONGEST) < torch.tensor(LENGTHS)[:, None]
    return now, old, reference, torch.tensor([1.2, -0.7, 0.4, -0.9]), mask


def trainer_of(loss_type, beta, log_probs):
    """Return what `_compute_loss` reads of a trainer, whose model gives these log-probs."""
    accelerator = SimpleNamespace(
        num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x, sync_gradients=True
    )
    return SimpleNamespace(
        loss_type=loss_type,
        beta=beta,
        epsilon_low=0.2,
        epsilon_high=0.2 if HIGH[loss_type] is None else HIGH[loss_type],
        max_completion_length=LONGEST + 3,
        _get_per_token_logps_and_entropies=lambda *_, **__: (log_probs, torch.zeros_like(log_probs), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        use_vllm=False,
        _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1,
        model=SimpleNamespace(training=True),
        accelerator=accelerator,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        _metrics={"train": defaultdict(list)},
    )


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("loss_type", HIGH)
def test_loss_and_gradient_are_those_of_trl(loss_type, beta):
    now, old, reference, advantages, mask = numbers()
    theirs, ours = now.clone().requires_grad_(), now.clone().requires_grad_()
    inputs = {
        "prompt_ids": torch.zeros(len(LENGTHS), 1, dtype=torch.long),
        "prompt_mask": torch.ones(len(LENGTHS), 1, dtype=torch.long),
        "completion_ids": torch.zeros(len(LENGTHS), LONGEST, dtype=torch.long),
        "completion_mask": mask.long(),
        "advantages": advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum(),
    }
    expected = trl.GRPOTrainer._compute_loss(trainer_of(loss_type, beta, theirs), None, inputs)
    loss, _ = policy_loss(
        ours[mask],
        old[mask],
        reference[mask] if beta else None,
        advantages,
        mask.nonzero()[:, 0],
        clip_range=0.2,
        clip_range_high=HIGH[loss_type],
        kl_coef=beta,
        num_answers=len(LENGTHS),
        loss_type=loss_type,
        num_tokens=int(mask.sum()),
        max_answer_tokens=LONGEST + 3,
    )
    assert_close(loss, expected, atol=1e-6, rtol=0)
    loss.backward()
    expected.backward()
    assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=0)
    assert ours.grad.abs().max() > 0.01
