"""VideoJudge: one vision-language model that answers requests about clips, batched behind shared prefixes.

Shapes: R packed rows, L tokens of the longest row, D hidden size, V vocabulary, M answer tokens of a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reward_model.judge.answers import AnswerLogits, TokenLogProbs, token_log_probs
from reward_model.judge.batching import AnswerText, Batch, TokenCache, lay_out
from reward_model.judge.checkpoint import BASE_FOLDER, SAME_FOLDER, JudgeConfig, load_parts, quiet
from reward_model.judge.clip_encoder import ClipEncoder
from reward_model.judge.decoding import (
    END_TOKENS,
    VISION_TOKENS,
    Completion,
    continue_branches,
    token_ids,
    uniforms,
)
from reward_model.judge.families import Family, family_of
from reward_model.judge.location import locate
from reward_model.judge.motion_tokens import MOTION_TOKEN, MotionProjector
from reward_model.judge.prefix_attention import num_common, split_prefix
from reward_model.judge.roles import Roles, base_state
from reward_model.judge.score_head import ScoreHead, states_at
from reward_model.judge.shared_prefix import tree_mask
from reward_model.judge.windows import batch_windows
from reward_model.language import prompts, styles
from reward_model.records import Clip, JudgeRequest


class VideoJudge(nn.Module):
    """A vision-language model with its tokenizer, its family's facts and its roles."""

    def __init__(self, model: nn.Module, tokenizer: Any, config: JudgeConfig) -> None:
        """Take the parts; `from_pretrained` is the usual way.

        Args:
            model: a transformers image-text-to-text model of one of the families.
            tokenizer: its tokenizer, which must know each answer word as one token.
            config: how it is read.

        Raises:
            ValueError: the model and the configuration disagree, or an answer word is not one token.
        """
        super().__init__()
        batch_windows(model)
        split_prefix(model)
        self.model: Any = model
        self.tokenizer, self.config = tokenizer, config
        self.family = self._family(config.min_pixels, config.max_pixels)
        self.style = styles.style_of(config.prompt_style, config.wording)
        self.level_ids = tuple(self._one_token(text) for text in prompts.level_texts())
        self.preference_ids = tuple(self._one_token(text) for text in prompts.preference_texts())
        self.banned_ids = tuple(token_ids(tokenizer, VISION_TOKENS))
        self.motion: MotionProjector | None = None
        self.head: ScoreHead | None = None
        self._roles, self._clips = Roles(model), ClipEncoder(model)
        self._texts = TokenCache(tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        subfolder: str = "",
        revision: str | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        attn_implementation: str = "sdpa",
    ) -> VideoJudge:
        """Load a saved judge, a judge that others released (see `judge.released`), or a stock checkpoint as an untrained one.

        Args:
            path_or_id: folder or hub id of what `save_pretrained` wrote, or of a checkpoint; "owner/name/sub" names a
                checkpoint inside a repository.
            subfolder: where inside the folder or repository it stands.
            revision: commit, branch or tag of a hub repository.
            dtype: of the weights; "auto" is float32 on CPU and the checkpoint's own elsewhere.
            device: None is the first CUDA device where there is one, else the CPU.
            attn_implementation: "sdpa" or "eager".

        Returns:
            The judge in evaluation mode, with all its roles and none active.
        """
        source = locate(path_or_id, subfolder=subfolder, revision=revision)
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        judge = cls(*load_parts(source, dtype=dtype, device=place, attn_implementation=attn_implementation))
        if source.folder is not None:
            if judge.config.motion:
                judge.add_motion(judge.config.motion)
                assert judge.motion is not None
                judge.motion.load(source.folder)
            judge._roles.load(source.folder)
            judge.head = ScoreHead.load(source.folder, judge.tokenizer, place)
        return judge.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write configuration, tokenizer, adapters and, for a judge trained from scratch, the base."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        if self.config.base in (BASE_FOLDER, SAME_FOLDER):
            with quiet():
                self.model.save_pretrained(place / self.config.base, state_dict=base_state(self.model))
        if self.motion is not None:
            self.motion.save(place)
        if self.head is not None:
            self.head.save(place)
        self._roles.save(place)
        self.tokenizer.save_pretrained(place)
        self.config.save(place)

    def configure(self, **changes: Any) -> None:
        """Replace fields of the configuration, e.g. calibration, lineage, pixel bounds or the wording of questions."""
        config = dataclasses.replace(self.config, **changes)
        self.style = styles.style_of(config.prompt_style, config.wording)
        self.config = config
        self.family = self._family(config.min_pixels, config.max_pixels)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.lm_head.weight.device

    @property
    def roles(self) -> tuple[str, ...]:
        """Names of the adapters."""
        return self._roles.names

    def use_role(self, name: str | None) -> AbstractContextManager[None]:
        """Return a context with that adapter active (None: the base alone).

        It holds the judge's lock and leaves requires_grad of every weight as it was; gradients computed after leaving it
        are still those of the forward passes inside, unless gradient checkpointing repeats them.
        """
        return self._roles.use(name)

    def add_role(
        self, name: str, *, rank: int = 16, alpha: int = 32, vision: bool = False, copy_from: str | None = None
    ) -> None:
        """Add a LoRA adapter on the text model's linear layers.

        Args:
            name: of letters, digits, - and _.
            rank: of the update; raising it lets more change.
            alpha: the update is scaled by alpha / rank.
            vision: adapt the vision tower's linear layers too.
            copy_from: role whose settings and weights it starts from; the other settings are then not read.

        Raises:
            ValueError: a name that is taken or malformed, or an unknown role to copy.
        """
        self._roles.add(name, rank=rank, alpha=alpha, vision=vision, copy_from=copy_from)

    def add_motion(self, settings: Mapping[str, Any]) -> None:
        """Show clips' motion features from now on, in slots behind their frames.

        Args:
            settings: of the encoder, with "feature_size", F; they are saved with the judge.

        Raises:
            ValueError: the judge has motion tokens, or its tokenizer no token for them.
        """
        if self.motion is not None or not token_ids(self.tokenizer, [MOTION_TOKEN]):
            raise ValueError(f"motion tokens are there already, or the tokenizer lacks {MOTION_TOKEN}")
        hidden = self.model.get_input_embeddings().weight
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.motion = MotionProjector(int(settings["feature_size"]), hidden.shape[1]).to(hidden.device)
        self.configure(motion=dict(settings))

    def remove_role(self, name: str) -> None:
        """Take an adapter away; ValueError if there is none of that name or it is in use."""
        self._roles.remove(name)

    def trainable_parameters(self, role: str | None, *, motion: bool = False) -> list[nn.Parameter]:
        """Make one role's weights the only ones that require a gradient, and return them.

        Args:
            role: None is the base, with the motion projector where there is one.
            motion: train the motion projector, which all roles share, beside a role.

        Returns:
            The parameters.

        Raises:
            ValueError: an unknown role, or no motion projector to train.
        """
        if motion and self.motion is None:
            raise ValueError("this judge has no motion tokens to train")
        self._roles.check(role)
        adapters = {id(p) for name in self.roles for p in self._roles.parameters(name)}
        everything = list(self.model.parameters())
        chosen = [p for p in everything if id(p) not in adapters] if role is None else self._roles.parameters(role)
        if self.motion is not None and (motion or role is None):
            chosen = [*chosen, *self.motion.parameters()]
        self.requires_grad_(False)
        for parameter in chosen:
            parameter.requires_grad_(True)
        return chosen

    def remember_clips(self, num_clips: int | None = None) -> AbstractContextManager[None]:
        """Return a context inside which the vision tower sees each clip once, unless it is trained or adapted.

        Args:
            num_clips: features kept at a time; None keeps all.

        Returns:
            The context.
        """
        return self._clips.remember(num_clips)

    @contextmanager
    def pixel_cap(self, max_pixels: int | None) -> Iterator[None]:
        """Show clips with at most `max_pixels` (None: as configured) inside this context; holds the judge's lock."""
        with self._roles.hold():
            before = self.family
            if max_pixels is not None:
                low = min(self.config.min_pixels, max_pixels)
                self.family = self._family(low, max_pixels)
            try:
                yield
            finally:
                self.family = before

    def next_token_logits(self, requests: Sequence[JudgeRequest], *, quantise: bool = True) -> list[Tensor]:
        """Return what comes after each branch.

        Requests with the same clips (the same tensors) and prefix share one encoding.

        Args:
            requests: any number, of any clips.
            quantise: see pixels as 8-bit values, as the official processors do; the gradient is the float path's.

        Returns:
            Per request [number of branches, V], fp32, differentiable in weights and pixels.
        """
        batch = self._lay_out(requests, None)
        logits = self._head(self._hidden(batch, quantise=quantise), batch.rows.ends)[batch.branch_order]
        return list(logits.split([len(request.branches) for request in requests]))

    def head_scores(self, clips: Sequence[Clip], texts: Sequence[str], *, quantise: bool = True) -> Tensor:
        """Return what the head makes of clips, for judges that have one.

        Args:
            clips: N clips.
            texts: N generation prompts.
            quantise: as in `next_token_logits`.

        Returns:
            Raw scores [N, K], fp32, differentiable in weights and pixels; `head.normalise` makes z scores of them.

        Raises:
            ValueError: the judge has no head.
        """
        if self.head is None:
            raise ValueError("this judge has no score head; it is read by level, reason or compare")
        requests = [self.head.request(clip, text) for clip, text in zip(clips, texts, strict=True)]
        batch = self._lay_out(requests, None)
        ends = batch.rows.ends[batch.branch_order].tolist()
        hidden = self._hidden(batch, quantise=quantise)
        return self.head(states_at(hidden, batch.rows.tokens, batch.rows.branch, ends, self.head.token_ids)).float()

    def answer_logits(
        self, requests: Sequence[JudgeRequest], answers: Sequence[Sequence[str]], *, quantise: bool = True
    ) -> AnswerLogits:
        """Return the logits at every token of one answer per branch.

        Args:
            requests: any number, of any clips.
            answers: per request and branch, one text; tokenised apart from the branch.
            quantise: as in `next_token_logits`.

        Returns:
            The answer tokens of all requests together, differentiable in weights and pixels.
        """
        batch = self._lay_out(requests, [[[text] for text in texts] for texts in answers])
        return self._answer_logits(batch, quantise=quantise)

    def log_probs(
        self,
        requests: Sequence[JudgeRequest],
        completions: Sequence[Sequence[Sequence[AnswerText]]],
        *,
        temperature: float = 1.0,
        banned: Sequence[int] = (),
        quantise: bool = True,
    ) -> TokenLogProbs:
        """Return the log-probability of every token of several answers per branch.

        The logits of a few hundred tokens exist at a time; the backward pass computes them again.

        Args:
            requests: any number, of any clips.
            completions: per request and branch, any number of texts (tokenised apart from the branch) or of token ids.
            temperature: divides the logits, as in `sample`.
            banned: tokens that were never to come; `banned_ids` for what `sample` wrote.
            quantise: as in `next_token_logits`.

        Returns:
            The tokens of all answers together, in the order given, differentiable in weights and pixels.
        """
        batch = self._lay_out(requests, completions)
        rows, device = batch.rows, self.device
        hidden = self._hidden(batch, quantise=quantise).flatten(0, 1)[rows.sources.to(device)]  # [M, D]
        never = torch.tensor(list(banned), dtype=torch.long, device=device)
        values, entropy = token_log_probs(
            self.model.lm_head, hidden, rows.targets.to(device), temperature=temperature, banned=never
        )
        owner = batch.answer_order[rows.owners]
        order = owner.argsort(stable=True)  # the rows' order is another where requests share a prefix
        here = order.to(device)
        return TokenLogProbs(values[here], entropy[here], owner[order])

    def generate(
        self,
        requests: Sequence[JudgeRequest],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        num_samples: int = 1,
        seed: int = 0,
    ) -> list[list[list[str]]]:
        """Answer every branch with texts; `sample` with its arguments, decoded and without end tokens."""
        sampled = self.sample(
            requests, max_new_tokens=max_new_tokens, temperature=temperature, num_samples=num_samples, seed=seed
        )
        return [[[self.decode(answer) for answer in answers] for answers in branches] for branches in sampled]

    def decode(self, completion: Completion) -> str:
        """Return a completion's text without its end token."""
        return self.tokenizer.decode(completion.tokens[:-1] if completion.ended else completion.tokens)

    @torch.no_grad()
    def sample(
        self,
        requests: Sequence[JudgeRequest],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        num_samples: int = 1,
        seed: int = 0,
        names: Sequence[str] | None = None,
        quantise: bool = True,
    ) -> list[list[list[Completion]]]:
        """Answer every branch, with each prefix encoded once and its keys and values shared by all its answers.

        Args:
            requests: any number, of any clips.
            max_new_tokens: most tokens of an answer; a longer one is cut.
            temperature: 0 takes the likeliest token; raising it varies the samples more.
            num_samples: answers per branch.
            seed: with the branch's text and the sample's number it keys the draws, so batching does not change them.
            names: one per request, keys its draws too, so that two requests with one branch differ.
            quantise: as in `next_token_logits`.

        Returns:
            Per request, branch and sample a completion; vision tokens never come.

        Raises:
            ValueError: negative temperature, or several samples without one.
        """
        if temperature < 0 or (temperature == 0 and num_samples > 1):
            raise ValueError(f"{num_samples} samples need a temperature > 0, got {temperature}")
        from transformers import DynamicCache

        batch, cache = self._lay_out(requests, None), DynamicCache()
        hidden = self._hidden(batch, quantise=quantise, cache=cache)
        named = zip(names or [""] * len(requests), requests, strict=True)
        branches = [f"{name}/{text}" for name, request in named for text in request.branches]
        packed = batch.branch_order.argsort().tolist()
        keys = [f"{seed}/{sample}/{branches[i]}" for i in packed for sample in range(num_samples)]
        answers = continue_branches(
            self.model,
            self.family,
            self._head(hidden, batch.rows.ends),
            cache,
            batch.rows,
            num_samples=num_samples,
            draws=uniforms(keys, max_new_tokens) if temperature > 0 else None,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            banned=self.banned_ids,
            ends=token_ids(self.tokenizer, END_TOKENS),
        )
        samples = iter([answers[i * num_samples : (i + 1) * num_samples] for i in batch.branch_order.tolist()])
        return [[next(samples) for _ in request.branches] for request in requests]

    def _answer_logits(self, batch: Batch, *, quantise: bool) -> AnswerLogits:
        rows = batch.rows
        logits = self._head(self._hidden(batch, quantise=quantise), rows.sources)
        first = torch.ones_like(rows.owners, dtype=torch.bool)
        first[1:] = rows.owners[1:] != rows.owners[:-1]
        owner = batch.answer_order[rows.owners]
        return AnswerLogits(logits, *(t.to(self.device) for t in (rows.targets, owner, first)))

    def _lay_out(
        self, requests: Sequence[JudgeRequest], answers: Sequence[Sequence[Sequence[AnswerText]]] | None
    ) -> Batch:
        size = 0 if self.motion is None else int(self.config.motion["feature_size"])
        return lay_out(requests, answers, family=self.family, texts=self._texts, motion_size=size)

    def _hidden(self, batch: Batch, *, quantise: bool, cache: object | None = None) -> Tensor:
        """Return the last hidden states [R, L, D] of the packed rows, with one call of each tower."""
        device, rows = self.device, batch.rows
        tokens = rows.tokens.to(device)
        embeddings = self.model.get_input_embeddings()(tokens)
        video_mask = tokens == self.family.facts.video_token_id
        deep: tuple[Tensor, ...] = ()
        if batch.clips:
            features = self._clips.features(batch.clips, self.family, quantise=quantise)
            features = features.select(batch.video_index.to(device))
            embeddings = embeddings.masked_scatter(video_mask[..., None], features.tokens.to(embeddings.dtype))
            deep = features.deep
        if batch.motion is not None and self.motion is not None:
            slots = tokens == token_ids(self.tokenizer, [MOTION_TOKEN])[0]
            projected = self.motion(batch.motion.to(device)).to(embeddings.dtype)
            embeddings = embeddings.masked_scatter(slots[..., None], projected)
        mask = tree_mask(rows, dtype=embeddings.dtype, device=device)
        positions = rows.positions.to(device)
        return self.family.text(
            self.model,
            embeddings,
            positions,
            mask,
            deep=deep,
            video_mask=video_mask,
            cache=cache,
            num_common=num_common(rows),
        )

    def _head(self, hidden: Tensor, places: Tensor) -> Tensor:
        """Return fp32 logits [N, V] at flat places [N] of hidden states [R, L, D]."""
        return self.model.lm_head(hidden.flatten(0, 1)[places.to(hidden.device)]).float()

    def _family(self, min_pixels: int, max_pixels: int) -> Family:
        return family_of(self.model.config, min_pixels, max_pixels, self.config.position_rule)

    def _one_token(self, text: str) -> int:
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if len(ids) != 1:
            raise ValueError(f"the tokenizer splits the answer {text!r} into {len(ids)} tokens, it must be one")
        return ids[0]
