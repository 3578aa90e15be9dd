"""The pairs of a refresh: the round's first losers are kept, the newest clips sampled, and every source asked.

Shape legend: c latent channels, F latent frames, h, w latent height and width, T pixel frames, G group size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from generator_loop.records import Prompt, Rollout, Scored
from generator_loop.refresh.base import Candidate, PairSource, PairTools
from reward_model.records import Video, VideoPair


@dataclass(frozen=True)
class WeightedPairs:
    """Pairs of one refresh, the chance of each to be drawn, and numbers about them for the log."""

    pairs: tuple[VideoPair, ...] = ()
    chances: tuple[float, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)


class PairCollector:
    """Asks the sources of pairs when a refresh is due, and remembers earlier pairs where the config says so."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        sources: Mapping[str, tuple[PairSource, float]],
        *,
        num_remembered: int = 0,
        rank_by: str = "reward",
    ) -> None:
        """Start with no clip and no pair.

        Args:
            prompts: training prompts, by which a restored state is read.
            sources: name -> source and its weight.
            num_remembered: newest pairs of each source that later refreshes draw from as well.
            rank_by: score by which the worst clip of the round's start and the best of its end are chosen.
        """
        self._prompts = {prompt.prompt_id: prompt for prompt in prompts}
        self._texts = {prompt.text for prompt in prompts}
        self._sources, self._num_remembered, self._rank_by = dict(sources), num_remembered, rank_by
        self._rejected: dict[int, Tensor] = {}
        self._remembered: dict[str, list[VideoPair]] = {name: [] for name in sources}

    def observe(self, samples: Rollout, scored: Scored, tools: PairTools) -> None:
        """Keep the worst clip, as clean latents, of every prompt that has none yet in this round.

        Args:
            samples: this process's groups of one iteration.
            scored: their rewards.
            tools: the run's parts.
        """
        for prompt_id, latents in tools.gather(rejected_of(samples, scored, by=self._rank_by)):
            self._rejected.setdefault(prompt_id, latents)

    def collect(self, tools: PairTools) -> WeightedPairs:
        """Return the pairs of a refresh, the same on all processes, and forget the round's clips.

        Args:
            tools: the run's parts.

        Returns:
            Pairs of all sources with those remembered. Each source has its weight's share of the draws, whatever its number
            of pairs.
        """
        candidates = self._candidates(tools)
        made = {name: self._ask(source, candidates, tools) for name, (source, _) in self._sources.items()}
        self._rejected = {}
        pairs: list[VideoPair] = []
        chances: list[float] = []
        metrics: dict[str, float] = {}
        for name, new in made.items():
            usable = [*self._remembered[name], *new]
            self._remembered[name] = self._to_remember(usable)
            pairs += usable
            chances += [self._sources[name][1] / len(usable) for _ in usable]
            metrics |= {f"pairs_{name}": float(len(new)), **self._confirmed(name, new, tools)}
        return WeightedPairs(tuple(pairs), tuple(chances), metrics)

    def state(self) -> Mapping[str, Tensor]:
        """Return the rejected latents and the remembered pairs.

        Names of latents begin with their place, since the order decides which prompts are paired.
        """
        latents = {f"rejected.{place:06d}.{key}": value for place, (key, value) in enumerate(self._rejected.items())}
        pairs = [(name, pair) for name, known in self._remembered.items() for pair in known]
        return latents | {
            f"pair.{name}.{number:06d}.{part}": tensor
            for number, (name, pair) in enumerate(pairs)
            for part, tensor in _to_tensors(pair).items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the tensors of `state`."""
        self._rejected, self._remembered = {}, {name: [] for name in self._sources}
        pairs: dict[tuple[str, str], dict[str, Tensor]] = {}
        for key in sorted(state):
            kind, rest = key.split(".", 1)
            if kind == "rejected":
                self._rejected[int(rest.split(".")[1])] = state[key]
            else:
                name, number, part = rest.rsplit(".", 2)  # a source's name may hold dots
                pairs.setdefault((number, name), {})[part] = state[key]
        for (_, name), parts in pairs.items():
            self._remembered[name].append(_from_tensors(parts))

    def _candidates(self, tools: PairTools) -> list[Candidate]:
        """Return this process's share of the first prompts of the round, with clips of the newest policy."""
        kept = list(self._rejected.items())[: tools.num_prompts]
        own = [(place, self._prompts[key], latents) for place, (key, latents) in enumerate(kept)]
        own = own[tools.rank :: tools.num_ranks]
        if not own:
            return []
        samples, scored = tools.sample([prompt for _, prompt, _ in own])
        frames = samples.frames.unflatten(0, (-1, samples.group_size))  # [prompts, G, T, C, H, W]
        rewards = torch.where(scored.valid, scored.by(self._rank_by), torch.nan).unflatten(0, (-1, samples.group_size))
        return [
            Candidate(place, prompt, frames[index], rewards[index], tools.decode(latents[None])[0].cpu())
            for index, (place, prompt, latents) in enumerate(own)
        ]

    def _to_remember(self, pairs: Sequence[VideoPair]) -> list[VideoPair]:
        """Return the newest pairs in memory, in the 8 bits of a checkpoint; those of a file are read anew each time."""
        kept = [pair for pair in pairs if isinstance(pair.first, Video)]
        kept = kept[max(0, len(kept) - self._num_remembered) :]
        return [_from_tensors(_to_tensors(pair)) for pair in kept]

    def _confirmed(self, name: str, pairs: Sequence[VideoPair], tools: PairTools) -> dict[str, float]:
        """Return the share of a source's new pairs of the world's prompts whose label its oracle confirms, where there are any."""
        if tools.oracle is None:
            return {}
        right = []
        for pair in pairs:
            if pair.prompt not in self._texts:  # an oracle knows no captions of other clips
                continue
            if isinstance(pair.first, Video) and isinstance(pair.second, Video):
                first, second = (tools.oracle(side.frames, pair.prompt) for side in (pair.first, pair.second))
                right.append((first > second) == (pair.preference["overall"] > 0.5))
        return {f"confirmed_{name}": sum(right) / len(right)} if right else {}

    @staticmethod
    def _ask(source: PairSource, candidates: Sequence[Candidate], tools: PairTools) -> list[VideoPair]:
        placed = tools.gather(source.pairs(candidates, tools))
        return [pair for _, pair in sorted(placed, key=lambda item: item[0])]


def rejected_of(samples: Rollout, scored: Scored, *, by: str = "reward") -> list[tuple[int, Tensor]]:
    """Return (prompt id, latents [c, F, h, w]) of each group's worst scored clip; a group without scores has none."""
    ranked = scored.by(by)
    values = torch.where(scored.valid & ranked.isfinite(), ranked, torch.inf)
    groups = values.view(-1, samples.group_size)  # [prompts, G]
    return [
        (prompt.prompt_id, samples.latents[place * samples.group_size + int(group.argmin())].clone())
        for place, (prompt, group) in enumerate(zip(samples.prompts, groups, strict=True))
        if bool(group.isfinite().any())
    ]


def _to_tensors(pair: VideoPair) -> dict[str, Tensor]:
    """Return a pair in memory as tensors of bytes, for a checkpoint."""
    assert isinstance(pair.first, Video) and isinstance(pair.second, Video)
    facts = {
        "prompt": pair.prompt,
        "preference": dict(pair.preference),
        "source": pair.source_id,
        "fps": pair.first.fps,
    }
    return {
        "first": _bytes_of(pair.first.frames),
        "second": _bytes_of(pair.second.frames),
        "facts": torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8),
    }


def _from_tensors(parts: Mapping[str, Tensor]) -> VideoPair:
    """Return the pair that `_to_tensors` wrote."""
    facts = json.loads(bytes(parts["facts"].cpu().tolist()))
    first, second = (Video(frames=parts[side].cpu().float() / 255, fps=facts["fps"]) for side in ("first", "second"))
    return VideoPair(first, second, facts["prompt"], facts["preference"], facts["source"])


def _bytes_of(frames: Tensor) -> Tensor:
    return (frames.clamp(0, 1) * 255).round().to(torch.uint8)
