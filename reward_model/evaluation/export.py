"""A judge as a folder for others, with its model card, and the way to the hub."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Protocol

from reward_model.evaluation.card import CardFacts, write_card
from reward_model.judge.checkpoints.format import BASE_FOLDER, SAME_FOLDER, JudgeConfig
from reward_model.judge.model import VideoJudge


class HubApi(Protocol):
    """The methods of `huggingface_hub.HfApi` that are used here."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any:
        """Create a repository, or leave the one that is there."""

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> Any:
        """Upload a folder's files as one commit and return a record of it."""


def export_hub_folder(
    judge: VideoJudge, folder: str | Path, facts: CardFacts, *, base_id: str = "", base_revision: str | None = None
) -> Path:
    """Save a judge with a model card, so that the folder can stand on a hub.

    Args:
        judge: the judge.
        folder: where to; files of an earlier export are replaced.
        facts: for the card.
        base_id: hub id of the base, for a judge whose base is a folder of this machine.
        base_revision: its revision.

    Returns:
        The folder.

    Raises:
        ValueError: the base is a folder of this machine and no id is given, or an id for a base that is saved along.
    """
    config = _public(judge.config, base_id, base_revision)
    place = Path(folder)
    judge.save_pretrained(place)
    config.save(place)
    write_card(place, facts)
    return place


def push_to_hub(folder: str | Path, repo_id: str, *, private: bool = False, api: HubApi | None = None) -> str:
    """Upload an exported folder to the hub.

    Args:
        folder: with a model card and without pickles.
        repo_id: "owner/name"; created where it does not exist.
        private: whether a new repository is private.
        api: stands in for `huggingface_hub.HfApi()`.

    Returns:
        Address of the commit.

    Raises:
        ValueError: the folder has no model card.
    """
    if not (Path(folder) / "README.md").is_file():
        raise ValueError(f"{folder} has no README.md; export_hub_folder writes one")
    if api is None:
        from huggingface_hub import HfApi

        api = HfApi()
    api.create_repo(repo_id, private=private, exist_ok=True)
    return str(api.upload_folder(repo_id=repo_id, folder_path=str(folder), commit_message="Upload judge").commit_url)


def _public(config: JudgeConfig, base_id: str, revision: str | None) -> JudgeConfig:
    """Return the configuration as others can use it: no base that only this machine has."""
    if base_id:
        if config.base in (BASE_FOLDER, SAME_FOLDER):
            raise ValueError(f"the base is saved with this judge, {base_id!r} would not be read; leave base_id out")
        return dataclasses.replace(config, base=base_id, base_subfolder="", revision=revision)
    if Path(config.base).is_absolute():
        raise ValueError(
            f"the base {config.base} is a folder of this machine; name its hub id with base_id, or merge a role"
        )
    return config
