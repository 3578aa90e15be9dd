"""Loading, saving, adapting and switching of a judge's pieces: model, tokenizer, configuration, roles."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from reward_model.judge.attention.tree import attend_in_trees
from reward_model.judge.attention.windows import batch_windows
from reward_model.judge.checkpoints.format import BASE_FOLDER, SAME_FOLDER, JudgeConfig, load_parts, quiet
from reward_model.judge.checkpoints.location import locate
from reward_model.judge.checkpoints.manifest import check_weights
from reward_model.judge.engine.batching import TokenCache
from reward_model.judge.engine.clip_encoder import ClipEncoder
from reward_model.judge.engine.decoding import VISION_TOKENS, token_ids
from reward_model.judge.families import family_of
from reward_model.judge.families.base import VisionFamily
from reward_model.judge.modules.motion_tokens import MOTION_TOKEN, MotionProjector
from reward_model.judge.modules.motion_tokens import WEIGHTS_FILE as MOTION_FILE
from reward_model.judge.modules.roles import ADAPTERS_FOLDER, Roles, base_state
from reward_model.judge.modules.score_head import ScoreHead
from reward_model.language import styles
from reward_model.language.requests import level_texts, preference_texts


class JudgeParts(nn.Module):
    """A vision-language model with its tokenizer, its family's facts and its roles."""

    def __init__(self, model: nn.Module, tokenizer: Any, config: JudgeConfig) -> None:
        """Take the pieces; `from_pretrained` is the usual way.

        The model is changed in place: where its towers use torch's attention ("sdpa"), `_attn_implementation` of its text and
        vision configs becomes that of `judge.attention`. Its own forward gives equal values; `release` changes it back.

        Args:
            model: a transformers image-text-to-text model of one of the families.
            tokenizer: its tokenizer, which must know each answer word as one token.
            config: frames, prompts and calibration that it is read with.

        Raises:
            ValueError: the model and the configuration disagree, or an answer word is not one token.
        """
        super().__init__()
        self._switches = [batch_windows(model), attend_in_trees(model)]
        self.model: Any = model
        self.tokenizer, self.config = tokenizer, config
        self.family = self._family(config.min_pixels, config.max_pixels)
        self.style = styles.style_of(config.prompt_style, config.wording)
        self.level_ids = tuple(self._one_token(text) for text in level_texts())
        self.preference_ids = tuple(self._one_token(text) for text in preference_texts())
        self.suppressed_ids = tuple(token_ids(tokenizer, VISION_TOKENS))
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
    ) -> Self:
        """Load a saved judge, a released one (see `judge.checkpoints.released`), or a stock checkpoint as an untrained one.

        Args:
            path_or_id: folder or hub id of a saved judge or of a checkpoint; "owner/name/sub" names a checkpoint inside a
                repository.
            subfolder: folder inside `path_or_id`.
            revision: commit, branch or tag of a hub repository.
            dtype: of the weights; "auto" is float32 on CPU and the checkpoint's own elsewhere.
            device: None is the first CUDA device where there is one, else the CPU.
            attn_implementation: "sdpa" or "eager".

        Returns:
            The judge in evaluation mode, with all its roles and none active.

        Raises:
            ValueError: neither a folder nor available from the hub; or a folder with files that are missing, foreign, cut or
                changed, weights that do not fit, a pickle, or code of its own.
        """
        source = locate(path_or_id, subfolder=subfolder, revision=revision)
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        judge = cls(*load_parts(source, dtype=dtype, device=place, attn_implementation=attn_implementation))
        if source.folder is not None:
            if judge.config.motion:
                judge.add_motion(judge.config.motion)
                assert judge.motion is not None
                judge.motion.load(source.folder)
            elif (source.folder / MOTION_FILE).exists():
                raise ValueError(f"{source.folder / MOTION_FILE} is unexpected: the judge has no motion encoder")
            judge._roles.load(source.folder)
            judge._check_taught_roles(source.folder)
            judge.head = ScoreHead.load(source.folder, judge.tokenizer, judge.model.get_input_embeddings().weight)
            check_weights(source.folder)
        return judge.eval()

    def _check_taught_roles(self, folder: Path) -> None:
        """Refuse a folder that lacks the adapter of a role whose answers its configuration describes (ValueError)."""
        if missing := sorted(set(self.config.reasoned) - {"", *self.roles}):
            raise ValueError(f"{folder / ADAPTERS_FOLDER / missing[0]} is missing: the judge was taught in that role")

    def save_pretrained(
        self, folder: str | Path, *, base: Mapping[str, Tensor] | None = None, without: Collection[str] = ()
    ) -> None:
        """Write configuration, tokenizer, adapters and, for a judge trained from scratch, the base.

        Args:
            folder: a new or existing folder.
            base: weights of the base, for a judge that holds only a part of them here; None takes its own.
            without: roles that are left out.
        """
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        if self.config.base in (BASE_FOLDER, SAME_FOLDER):
            with quiet():
                self.model.save_pretrained(place / self.config.base, state_dict=base or self.base_state())
        if self.motion is not None:
            self.motion.save(place)
        if self.head is not None:
            self.head.save(place)
        self._roles.save(place, without=without)
        self.tokenizer.save_pretrained(place)
        self.config.save(place)

    def base_state(self) -> dict[str, Tensor]:
        """Return the base's weights under the names of a stock checkpoint, without any adapter."""
        return base_state(self.model)

    def release(self) -> nn.Module:
        """Give the model back with the attention implementations that it came with, and return it.

        Adapters that were added stay in it, inactive unless a role is in use; `remove_role` takes them away. The judge
        still answers, with equal values, by masked passes of stock attention. Calling it again changes nothing.
        """
        for switch in self._switches:
            switch.undo()
        self._switches = []
        return self.model

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

    @property
    def role_in_use(self) -> str | None:
        """Name of the active adapter; None is the base alone."""
        return self._roles.active

    def use_role(self, name: str | None) -> AbstractContextManager[None]:
        """Return a context with that adapter active (None: the base alone).

        It holds the judge's lock and leaves requires_grad of every weight as it was; gradients computed after leaving it
        are still those of the forward passes inside, unless gradient checkpointing repeats them.
        """
        return self._roles.use(name)

    def add_role(
        self,
        name: str,
        *,
        rank: int = 16,
        alpha: int = 32,
        targets: Sequence[str] = ("text",),
        copy_from: str | None = None,
    ) -> None:
        """Add a LoRA adapter on linear layers.

        Args:
            name: of letters, digits, - and _.
            rank: of the update; raising it lets more change.
            alpha: the update is scaled by alpha / rank.
            targets: parts of the model whose layers it adapts: "text", the text model; "vision", the blocks of the vision
                tower; "merger", the projections from the tower into the text model. Clips are then not remembered where the
                tower or the merger is adapted.
            copy_from: role whose rank, alpha, layers and weights it starts from; the other arguments are then not read.

        Raises:
            ValueError: a name that is taken or malformed, unknown targets, or an unknown role to copy.
        """
        self._roles.add(name, rank=rank, alpha=alpha, targets=targets, copy_from=copy_from)

    def widen_role(self, name: str, targets: Sequence[str]) -> None:
        """Let a role adapt further parts of the model; its answers stay as they are until it is trained.

        Args:
            name: a role that is not in use.
            targets: as in `add_role`; parts that it adapts already stay as they are.

        Raises:
            ValueError: unknown role or targets.
        """
        self._roles.widen(name, targets)

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
        """Remove an adapter and its entry in the configuration; ValueError if there is none of that name or it is in use."""
        self._roles.remove(name)
        self.configure(reasoned={role: sets for role, sets in self.config.reasoned.items() if role != name})

    def role_parameters(self, role: str | None, *, motion: bool = False) -> list[nn.Parameter]:
        """Return one role's weights and change nothing.

        Args:
            role: None is the base, with the motion projector where there is one.
            motion: add the motion projector, which all roles share, to a role's weights.

        Returns:
            The parameters, in the model's order.

        Raises:
            ValueError: an unknown role, or no motion projector.
        """
        if motion and self.motion is None:
            raise ValueError("this judge has no motion tokens to train")
        self._roles.check(role)
        chosen = self._roles.parameters(role)
        if self.motion is not None and (motion or role is None):
            chosen = [*chosen, *self.motion.parameters()]
        return chosen

    def train_only(self, role: str | None, *, motion: bool = False) -> list[nn.Parameter]:
        """Set requires_grad on one role's weights and clear it on all others; return the weights as `role_parameters` does.

        Args:
            role: as in `role_parameters`.
            motion: as in `role_parameters`.

        Returns:
            The parameters that now require a gradient.
        """
        chosen = self.role_parameters(role, motion=motion)
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

    def _family(self, min_pixels: int, max_pixels: int) -> VisionFamily:
        return family_of(self.model.config, min_pixels, max_pixels, self.config.position_rule)

    def _one_token(self, text: str) -> int:
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if len(ids) != 1:
            raise ValueError(f"the tokenizer splits the answer {text!r} into {len(ids)} tokens, it must be one")
        return ids[0]
