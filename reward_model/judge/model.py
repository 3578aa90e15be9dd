"""VideoJudge: one vision-language model that answers requests about clips, batched behind shared prefixes.

Shapes: R packed sequences, L tokens of the longest, D hidden size, V vocabulary, M answer tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reward_model.judge.engine.answers import AnswerLogits, TokenLogProbs, token_log_probs
from reward_model.judge.engine.batching import Answers, PackedBatch, pack_requests
from reward_model.judge.engine.decoding import END_TOKENS, Completion, continue_branches, token_ids, uniforms
from reward_model.judge.engine.shared_prefix import spans_of
from reward_model.judge.modules.motion_tokens import MOTION_TOKEN
from reward_model.judge.modules.score_head import states_at
from reward_model.judge.parts import JudgeParts
from reward_model.records import Clip, JudgeRequest


class VideoJudge(JudgeParts):
    """A judge that answers: logits, log-probabilities and texts behind each branch of a request."""

    def next_token_logits(self, requests: Sequence[JudgeRequest], *, quantise: bool = True) -> list[Tensor]:
        """Return the logits of the token after each branch.

        Requests with the same clips (the same tensors) and prefix share one encoding. With gradient each token has the bits
        of `log_probs`; without, the cheaper attention is taken, whose logits differ by rounding.

        Args:
            requests: any number, of any clips.
            quantise: see pixels as 8-bit values, as the official processors do; the gradient is the float path's.

        Returns:
            Per request [number of branches, V], fp32, differentiable in weights and pixels.
        """
        batch = self._pack(requests, None)
        hidden = self._hidden(batch, quantise=quantise, exact=torch.is_grad_enabled())
        logits = self._head(hidden, batch.sequences.ends)[batch.branch_order]
        return list(logits.split([len(request.branches) for request in requests]))

    def head_scores(self, clips: Sequence[Clip], texts: Sequence[str], *, quantise: bool = True) -> Tensor:
        """Return the score head's raw scores of clips, for judges that have one.

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
        batch = self._pack(requests, None)
        ends = batch.sequences.ends[batch.branch_order].tolist()
        hidden, sequences = self._hidden(batch, quantise=quantise), batch.sequences
        return self.head(states_at(hidden, sequences.tokens, sequences.branch, ends, self.head.token_ids)).float()

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
        batch = self._pack(requests, [[[text] for text in texts] for texts in answers])
        return self._answer_logits(batch, quantise=quantise)

    def log_probs(
        self,
        requests: Sequence[JudgeRequest],
        completions: Answers,
        *,
        temperature: float = 1.0,
        suppressed: Sequence[int] = (),
        allowed: Sequence[Tensor] | None = None,
        quantise: bool = True,
    ) -> TokenLogProbs:
        """Return the log-probability of every token of several answers per branch.

        The logits of a few hundred tokens exist at a time; the backward pass computes them again.

        Args:
            requests: any number, of any clips.
            completions: per request and branch, any number of texts (tokenised apart from the branch) or of token ids.
            temperature: divides the logits, as in `sample`.
            suppressed: tokens that had probability 0; `suppressed_ids` for answers of `sample`.
            allowed: for each token of all answers in the order given, the ids among which it was drawn, as `Completion.allowed`
                holds them; the distribution is cut to these and normalised. None is the whole vocabulary.
            quantise: as in `next_token_logits`.

        Returns:
            The tokens of all answers together, in the order given, differentiable in weights and pixels.
        """
        batch = self._pack(requests, completions)
        sequences, device = batch.sequences, self.device
        hidden = self._hidden(batch, quantise=quantise).flatten(0, 1)[sequences.sources.to(device)]  # [M, D]
        never = torch.tensor(list(suppressed), dtype=torch.long, device=device)
        owner = batch.answer_order[sequences.owners]
        order = owner.argsort(stable=True)  # sequences hold answers in another order where requests share a prefix
        if allowed is not None and len(allowed) != len(order):
            raise ValueError(f"allowed must have one list for each of {len(order)} tokens, got {len(allowed)}")
        values, entropy = token_log_probs(
            self.model.lm_head,
            hidden,
            sequences.targets.to(device),
            temperature=temperature,
            suppressed=never,
            allowed=None if allowed is None else [allowed[place] for place in order.argsort().tolist()],
        )
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
        top_p: float = 1.0,
        top_k: int = 0,
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
            top_p: draws among the likeliest tokens that together have this probability; 1 draws among all.
            top_k: draws among this many likeliest tokens; 0 draws among all.
            num_samples: answers per branch.
            seed: with the branch's text and the sample's number it seeds the noise, so batching does not change the answers.
            names: one per request, seeds the noise too, so that two requests with one branch differ.
            quantise: as in `next_token_logits`.

        Returns:
            Per request, branch and sample a completion; vision tokens are suppressed.

        Raises:
            ValueError: negative temperature, or several samples without one.
        """
        if temperature < 0 or (temperature == 0 and num_samples > 1):
            raise ValueError(f"{num_samples} samples need a temperature > 0, got {temperature}")
        from transformers import DynamicCache

        batch, cache = self._pack(requests, None), DynamicCache()
        hidden = self._hidden(batch, quantise=quantise, cache=cache)
        named = zip(names or [""] * len(requests), requests, strict=True)
        branches = [f"{name}/{text}" for name, request in named for text in request.branches]
        packed = batch.branch_order.argsort().tolist()
        keys = [f"{seed}/{sample}/{branches[i]}" for i in packed for sample in range(num_samples)]
        answers = continue_branches(
            self.model,
            self.family,
            self._head(hidden, batch.sequences.ends),
            cache,
            batch.sequences,
            num_samples=num_samples,
            noise=uniforms(keys, max_new_tokens) if temperature > 0 else None,
            temperature=temperature,
            max_new_tokens=max_new_tokens,
            top_p=top_p,
            top_k=top_k,
            suppressed=self.suppressed_ids,
            ends=token_ids(self.tokenizer, END_TOKENS),
        )
        samples = iter([answers[i * num_samples : (i + 1) * num_samples] for i in batch.branch_order.tolist()])
        return [[next(samples) for _ in request.branches] for request in requests]

    def _answer_logits(self, batch: PackedBatch, *, quantise: bool) -> AnswerLogits:
        sequences = batch.sequences
        logits = self._head(self._hidden(batch, quantise=quantise), sequences.sources)
        first = torch.ones_like(sequences.owners, dtype=torch.bool)
        first[1:] = sequences.owners[1:] != sequences.owners[:-1]
        owner = batch.answer_order[sequences.owners]
        return AnswerLogits(logits, *(t.to(self.device) for t in (sequences.targets, owner, first)))

    def _pack(self, requests: Sequence[JudgeRequest], answers: Answers | None) -> PackedBatch:
        size = 0 if self.motion is None else int(self.config.motion["feature_size"])
        return pack_requests(requests, answers, family=self.family, texts=self._texts, motion_size=size)

    def _hidden(self, batch: PackedBatch, *, quantise: bool, cache: object | None = None, exact: bool = True) -> Tensor:
        """Return the last hidden states [R, L, D] of the packed sequences, with one call of each tower."""
        device, sequences = self.device, batch.sequences
        tokens = sequences.tokens.to(device)
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
        positions, spans = sequences.positions.to(device), spans_of(sequences, self.model, exact=exact)
        return self.family.text(self.model, embeddings, positions, spans, deep=deep, video_mask=video_mask, cache=cache)

    def _head(self, hidden: Tensor, places: Tensor) -> Tensor:
        """Return fp32 logits [N, V] at flat places [N] of hidden states [R, L, D]."""
        return self.model.lm_head(hidden.flatten(0, 1)[places.to(hidden.device)]).float()
