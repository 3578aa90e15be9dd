"""Memory by layout: worked out by hand, for real modules, and on the page."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from generator_loop.run.estimate import memory_lines, run_footprint
from generator_loop.run.memory import Footprint, footprint_of, size_of
from generator_loop.run.sharding import Layout
from tests.tiny_runs import opened, tiny_recipe
from tests.tiny_wan import build_generator

ROOT = Path(__file__).resolve().parents[4]
GB = 10**9
FOOTPRINT = Footprint(
    transformers=80 * GB,
    block=1 * GB,
    adapter=2 * GB,
    num_copies=3,
    others=10 * GB,
    judges=16 * GB,
    judge_block=GB // 2,
    judges_whole=1 * GB,
)


@pytest.mark.parametrize(
    ("kind", "num", "shards", "expected"),
    [
        # transformers, adapter (weights, gradients, message, three copies), moments, encoders and VAE, judges
        ("whole", 1, False, [80, 12, 4, 10, 17]),
        ("whole", 8, False, [80, 12, 4, 10, 17]),
        ("fsdp2", 1, True, [80, 12, 4, 10, 17]),
        ("fsdp2", 8, False, [10 + 2, 12, 4, 10, 17]),
        ("fsdp2", 8, True, [10 + 2, 12, 4, 10, 2 + 1 + 1]),
        ("zero2", 8, False, [80, 12, 0.5, 10, 17]),
        ("zero3", 8, False, [10 + 2, 12, 0.5, 10, 17]),
    ],
)
def test_each_layout_keeps_what_it_says(kind, num, shards, expected) -> None:
    sizes = FOOTPRINT.per_process(Layout(kind=kind), num, shard_judges=shards)
    assert list(sizes.values()) == pytest.approx(expected)


def test_the_table_names_every_layout_and_adds_the_parts() -> None:
    table = dict(FOOTPRINT.table([1, 8]))
    assert table["ddp"] == pytest.approx([123, 123])
    assert table["fsdp2, judge.shard"] == pytest.approx([123, 42])
    assert set(table) == {"ddp", "fsdp2", "fsdp2, judge.shard", "zero2", "zero3"}


def test_the_footprint_of_a_generator_is_that_of_its_tensors() -> None:
    generator = build_generator()
    found = footprint_of(generator.models(), [], adapter=7, num_copies=2)
    frozen = [p for p in generator.pipeline.transformer.parameters() if not p.requires_grad]
    blocks = generator.pipeline.transformer.blocks
    others = [*generator.pipeline.text_encoder.parameters(), *generator.pipeline.vae.parameters()]
    assert found.transformers == 4 * sum(p.numel() for p in frozen)
    assert found.block == max(4 * sum(p.numel() for p in b.parameters() if not p.requires_grad) for b in blocks)
    assert found.others == 4 * sum(p.numel() for p in others)
    assert (found.judges, found.judges_whole, found.judge_block) == (0, 0, 0)


def test_sizes_follow_the_dtype_and_see_what_deepspeed_has_taken_away() -> None:
    layer = nn.Linear(3, 5).to(torch.bfloat16)
    assert size_of(layer) == 2 * (15 + 5)
    layer.weight.ds_numel = 15
    layer.weight.data = torch.zeros(0, dtype=torch.bfloat16)
    assert size_of(layer) == 2 * (15 + 5)


@pytest.mark.slow
def test_a_dry_run_says_what_each_layout_takes(tmp_path: Path) -> None:
    session = opened(tiny_recipe(tmp_path)(tmp_path / "run"))
    first, *lines = memory_lines(session)
    assert first.split()[-3:] == ["1", "8", "64"]
    assert [line.split("  ")[1].strip() for line in lines] == ["ddp", "fsdp2", "fsdp2, judge.shard", "zero2", "zero3"]
    judges = {
        id(weight): weight
        for judge in (session.judge, session.evaluator.judges["audit"])
        for weight in judge.judge.model.parameters()
    }
    models = [weight for model in session.generator.models().values() for weight in model.parameters()]
    adapter = sum(weight.numel() for weight in session.generator.trainable_parameters().values())
    # LoRA is among the weights: its gradients, message, two copies and two moments are not
    whole = 4 * (sum(weight.numel() for weight in [*models, *judges.values()]) + 6 * adapter) / 1e9
    table = dict(run_footprint(session).table())
    assert table["ddp"] == pytest.approx([whole] * 3) and whole > 1e-4
    assert table["fsdp2, judge.shard"][2] < table["fsdp2"][2] < whole
    assert all(f"{size:.2f}" == line.split()[-1] for (_, (*_, size)), line in zip(table.items(), lines, strict=True))


def memory_table() -> Any:
    spec = importlib.util.spec_from_file_location("memory_table", ROOT / "scripts" / "memory_table.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.mark.parametrize(("option", "status"), [("--help", 0), ("--dry-run", 2)])
def test_help_and_unknown_options_write_no_page(option: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    script = memory_table()
    monkeypatch.setattr(script, "footprints", lambda: pytest.fail("the table was made"))
    with pytest.raises(SystemExit) as ended:
        script.main([option])
    assert ended.value.code == status


@pytest.mark.slow
def test_the_page_is_up_to_date() -> None:
    script = memory_table()
    found = script.footprints()
    assert script.PAGE.read_text(encoding="utf-8") == script.page(found), "run python scripts/memory_table.py"
    for recipe in ("nft_wan", "nft_hunyuan_video"):
        text = script.recipe_path(recipe).read_text(encoding="utf-8")
        assert text == script.recipe_text(recipe, found), "run python scripts/memory_table.py"
    # published sizes: 1.3 and 14 billion in bfloat16, and 13
    sizes = {name: one.transformers / 2e9 for name, one in found.items()}
    assert sizes["Wan 2.1 1.3B"] == pytest.approx(1.42, abs=0.03)
    assert sizes["Wan 2.1 14B"] == pytest.approx(14.3, abs=0.1)
    assert sizes["HunyuanVideo"] == pytest.approx(12.8, abs=0.1)
