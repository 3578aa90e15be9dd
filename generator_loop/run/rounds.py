"""A round's candidates and judgements on disk, named by their content, so that a killed iteration goes on where it was.

`rounds/round-001/iteration-0003-rank-0-candidates-KEY.safetensors` holds the latents of one process, `...-judgements-KEY` their
rewards and scores. KEY hashes everything that they depend on: weights, prompts, noise and settings. A file of another key is
never read, so that nothing is computed twice and nothing stale is used.

Shape legend: B = prompts x group size.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from generator_loop.adapters.base import OLD
from generator_loop.records import Rollout, Scored
from generator_loop.run.launch import any_process
from generator_loop.run.session import Session
from reward_model.config import plain
from reward_model.files import write_beside

log = logging.getLogger(__name__)


def sampled(session: Session) -> Rollout:
    """Return the iteration's candidates: those on disk if this process wrote them before, else new ones."""
    prompts = session.sampler.choose_prompts(session.step)
    if session.config.run.keep_rounds == "none":
        return session.sampler.sample(prompts, session.draw)
    config, generator = session.config, session.generator
    facts = [config.generator, config.sampling, [(prompt.prompt_id, prompt.text) for prompt in prompts], session.draw]
    file = _file(session, "candidates", _key(generator.weights(OLD), facts))
    known = file.read()
    if known is None:
        samples = session.sampler.sample(prompts, session.draw)
        file.write({"noise": samples.noise, "latents": samples.latents}, {})
        return samples
    tensors, _ = known
    return session.sampler.sample(prompts, session.draw, known=(tensors["noise"], tensors["latents"]))


def scored(session: Session, samples: Rollout) -> Scored:
    """Return the candidates' judgements: those on disk if every process has its own, else new ones of all."""
    if session.config.run.keep_rounds == "none":
        return session.scorer.score(samples)
    weights = {"latents": samples.latents, **(session.refresher.weights() if session.refresher is not None else {})}
    facts = [
        session.config.judge,
        session.config.reward,
        [(prompt.prompt_id, prompt.text) for prompt in samples.prompts],
    ]
    file = _file(session, "judgements", _key(weights, facts))
    known = file.read()
    if any_process(known is None) or known is None:  # the reward terms of all processes are asked together
        judged = session.scorer.score(samples)
        if not judged.left_out:  # what failed is asked again
            file.write(_to_tensors(judged), {"reasons": list(judged.reasons)})
        return judged
    return _from_tensors(*known)


def forget(session: Session) -> None:
    """Delete what finished rounds left, unless the config keeps all of them; the first process does it."""
    folder = session.output / "rounds"
    if session.config.run.keep_rounds != "last" or not session.processes.is_main or not folder.is_dir():
        return
    for old in sorted(folder.glob("round-*")):
        if old.name < f"round-{session.progress.round:03d}":
            shutil.rmtree(old)


@dataclass(frozen=True)
class _Stored:
    path: Path

    def read(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return tensors and facts, or None where nothing intact is there."""
        from safetensors import SafetensorError, safe_open

        if not self.path.is_file():
            return None
        try:
            with safe_open(str(self.path), framework="pt") as file:
                facts = json.loads((file.metadata() or {})["facts"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            log.warning("%s is made anew: it cannot be read (%s)", self.path, error)
            return None
        if facts.pop("digest", "") != _digest(tensors):
            log.warning("%s is made anew: it is damaged", self.path)
            return None
        return tensors, facts

    def write(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write the file whole or not at all; where that fails, as on a full disk, the log says so and the run goes on without."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        metadata = {"facts": json.dumps({**facts, "digest": _digest(own)})}
        try:
            write_beside(self.path, lambda beside: save_file(own, str(beside), metadata=metadata))
        except (OSError, SafetensorError) as error:
            log.warning("%s is not kept: it cannot be written (%s)", self.path, error)


def _file(session: Session, kind: str, key: str) -> _Stored:
    progress = session.progress
    name = f"iteration-{progress.iteration:04d}-rank-{session.processes.rank}-{kind}-{key}.safetensors"
    return _Stored(session.output / "rounds" / f"round-{progress.round:03d}" / name)


def _key(tensors: Mapping[str, Tensor], facts: object) -> str:
    return hashlib.sha256((_digest(tensors) + json.dumps(plain(facts), sort_keys=True)).encode()).hexdigest()[:16]


def _digest(tensors: Mapping[str, Tensor]) -> str:
    whole = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        whole.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        whole.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def _to_tensors(judged: Scored) -> dict[str, Tensor]:
    tensors = {"rewards": judged.rewards, "valid": judged.valid}
    tensors |= {f"score.{name}": value for name, value in judged.scores.items()}
    return tensors if judged.disagreement is None else {**tensors, "disagreement": judged.disagreement}


def _from_tensors(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Scored:
    scores = {name.removeprefix("score."): value for name, value in tensors.items() if name.startswith("score.")}
    return Scored(
        rewards=tensors["rewards"],
        valid=tensors["valid"],
        scores=scores,
        disagreement=tensors.get("disagreement"),
        reasons=tuple(facts["reasons"]),
    )
