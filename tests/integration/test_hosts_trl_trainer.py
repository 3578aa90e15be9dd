"""A real GRPOTrainer takes a step on a tiny random text model, rewarded by the embedded judge, synchronously and awaited."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from reward_model import write_video
from reward_model.hosts.core import load_judge
from reward_model.hosts.trl import in_thread, video_reward

CAPTIONS = [f"a {colour} {shape} moving left" for colour in ("red", "blue", "green") for shape in ("circle", "square")]
FPS = 8.0


def tiny_text_model():
    """Return a random causal language model and its tokenizer, to which a whole caption is one token."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    vocabulary = {text: index for index, text in enumerate(("<pad>", "<eos>", "<unk>", "describe", *CAPTIONS))}
    whole_texts = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole_texts, **names)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = Qwen2Config(vocab_size=len(vocabulary), num_key_value_heads=2, pad_token_id=0, eos_token_id=1, **sizes)
        return Qwen2ForCausalLM(config), tokenizer


@pytest.mark.parametrize("awaited", [False, True])
def test_a_trainer_of_text_learns_from_the_judge(tmp_path: Path, awaited: bool) -> None:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    for index, clip in enumerate(torch.rand(2, 5, 3, 32, 32, generator=torch.Generator().manual_seed(0))):
        write_video(tmp_path / f"{index}.mp4", clip, FPS)
    (tmp_path / "broken.mp4").write_text("not a video")
    clips = [str(tmp_path / name) for name in ("0.mp4", "1.mp4", "broken.mp4")]
    calls = []
    caption = video_reward("toy", weights={"text_alignment": 1.0}, device="cpu", name="caption")

    def recorded(**arguments):
        calls.append((arguments["video"], arguments["completions"], caption(**arguments)))
        return calls[-1][2]

    recorded.__name__ = "caption"
    model, tokenizer = tiny_text_model()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=in_thread(recorded) if awaited else recorded,
        args=GRPOConfig(
            output_dir=str(tmp_path / "out"),
            per_device_train_batch_size=12,
            num_generations=4,
            max_completion_length=1,
            max_steps=1,
            learning_rate=1e-2,
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
            seed=1,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["describe"] * 3, "video": clips}),
        processing_class=tokenizer,
    )
    trainer.train()

    ((videos, completions, rewards),) = calls
    alone = load_judge("toy", device="cpu")(videos, completions).scores["text_alignment"].tolist()
    found = [math.nan if reward is None else reward for reward in rewards]
    assert found == pytest.approx(alone, abs=1e-5, nan_ok=True)
    assert all(reward is None for video, reward in zip(videos, rewards, strict=True) if video == clips[2])
    had = [reward for reward in rewards if reward is not None]
    assert len({round(reward, 3) for reward in had}) > 2  # the rewards tell captions apart
    logged = trainer.state.log_history[0]
    assert logged["rewards/caption/mean"] == pytest.approx(sum(had) / len(had), abs=1e-4)
    assert logged["caption/failed"] == pytest.approx(1 - len(had) / 12)
    assert max(float((weight.detach() - before[name]).abs().max()) for name, weight in model.named_parameters()) > 1e-4
