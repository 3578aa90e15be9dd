"""Memory per process that weights and moments take, by how they are laid out over the processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from generator_loop.run.sharding import Kind, Layout, towers_of

PROCESSES = (1, 8, 64)
"""Numbers of processes that tables show."""
LAYOUTS: tuple[tuple[str, Kind, bool], ...] = (
    ("ddp", "whole", False),
    ("fsdp2", "fsdp2", False),
    ("fsdp2, judge.shard", "fsdp2", True),
    ("zero2", "zero2", False),
    ("zero3", "zero3", False),
)
"""Name, layout, and whether judges are spread as well."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes of a run's weights; each model's are those of its frozen weights."""

    transformers: int
    """All transformers of the generator."""
    block: int
    """The largest block of a transformer, which is collected as a whole."""
    adapter: int
    """LoRA, in 32 bits."""
    num_copies: int
    """Copies of LoRA beside the live one: of the sampling policy and the reference."""
    others: int
    """Text encoders and VAE."""
    judges: int
    """Weights of the judges that are spread where they are asked to be."""
    judge_block: int
    """The largest layer of a judge."""
    judges_whole: int
    """Embeddings, heads and adapters of judges, which stay whole always."""

    def per_process(self, layout: Layout, num_processes: int, *, shard_judges: bool) -> dict[str, float]:
        """Return gigabytes on each process by part, without activations.

        Args:
            layout: how weights and moments are laid out.
            num_processes: how many there are; one keeps everything.
            shard_judges: judges are spread as well.

        Returns:
            transformers, adapter (with gradients and the message that carries them), moments, encoders and VAE, judges.
        """
        spreads = layout.is_sharded and num_processes > 1
        share = num_processes if layout.kind in ("zero2", "zero3") else 1
        judges = float(self.judges)
        if spreads and shard_judges:
            judges = self.judges / num_processes + 2 * self.judge_block
        # while one block computes, the next is collected
        transformers = self.transformers / num_processes + 2 * self.block if spreads else float(self.transformers)
        sizes = {
            "transformers": transformers,
            "adapter": float(self.adapter * (3 + self.num_copies)),
            "moments": self.adapter * 2 / share,
            "encoders and VAE": float(self.others),
            "judges": judges + self.judges_whole,
        }
        return {name: size / 1e9 for name, size in sizes.items()}

    def table(self, processes: Iterable[int] = PROCESSES) -> list[tuple[str, list[float]]]:
        """Return for each layout the gigabytes on each process, by number of processes."""
        counts = list(processes)
        return [
            (
                name,
                [sum(self.per_process(Layout(kind=kind), num, shard_judges=shards).values()) for num in counts],
            )
            for name, kind, shards in LAYOUTS
        ]


def footprint_of(
    models: Mapping[str, nn.Module], judges: Iterable[nn.Module], *, adapter: int, num_copies: int
) -> Footprint:
    """Return the footprint of loaded models, whole or spread.

    Args:
        models: the generator's, by name; those of transformers begin with "transformer".
        judges: vision-language models that are loaded here.
        adapter: bytes of the generator's LoRA.
        num_copies: copies of it beside the live one.

    Returns:
        The footprint, the same for every layout.
    """
    transformers = [model for name, model in models.items() if name.startswith("transformer")]
    others = [model for name, model in models.items() if not name.startswith("transformer")]
    blocks = [block for model in transformers for block in Layout().blocks(model)]
    loaded = list(judges)
    layers = [layer for judge in loaded for _, tower in towers_of(judge) for layer in tower]
    spread = sum(map(size_of, layers))
    return Footprint(
        transformers=sum(map(size_of, transformers)),
        block=max(map(size_of, blocks)),
        adapter=adapter,
        num_copies=num_copies,
        others=sum(map(size_of, others)),
        judges=spread,
        judge_block=max(map(size_of, layers), default=0),
        judges_whole=sum(_bytes(judge.named_parameters(), adapters=True) for judge in loaded) - spread,
    )


def size_of(model: nn.Module) -> int:
    """Return the bytes of a model's weights on all processes together, without adapters."""
    return _bytes(model.named_parameters(), adapters=False)


def _bytes(named: Iterable[tuple[str, Tensor]], *, adapters: bool) -> int:
    # DeepSpeed leaves weights that it has spread empty, and notes their size beside them
    return sum(
        vars(weight).get("ds_numel", weight.numel()) * weight.element_size()
        for name, weight in named
        if adapters or ".lora_" not in name
    )
