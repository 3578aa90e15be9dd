"""Place that a judge is read from: a folder, or a hub repository with sub-folder and revision. No pickle is ever read."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from reward_model.weights import hub_is_away, is_hub_id

CONFIG_FILE = "judge_config.json"


@dataclass(frozen=True)
class Location:
    """A folder (`path`), or the hub repository `path` with its sub-folder and revision."""

    path: str
    subfolder: str = ""
    revision: str | None = None
    is_offline: bool = False
    """Look for the repository on this machine only, since the hub cannot be reached."""

    @property
    def folder(self) -> Path | None:
        """The local folder; None on the hub."""
        return Path(self.path) if Path(self.path).is_dir() else None

    @property
    def name(self) -> str:
        """The last folder of its path, by which released judges are known."""
        return (self.subfolder or self.path).rstrip("/").rpartition("/")[2]

    def __str__(self) -> str:
        """Return it as a user names it."""
        return f"{self.path}/{self.subfolder}" if self.subfolder else self.path

    def origin(self) -> dict[str, str | None]:
        """Return where a stock checkpoint came from: an absolute path, or a hub id and the commit that was loaded."""
        if self.folder is not None:
            return {"base": str(self.folder.resolve())}
        from huggingface_hub import try_to_load_from_cache

        file = f"{self.subfolder}/config.json" if self.subfolder else "config.json"
        cached = try_to_load_from_cache(self.path, file, revision=self.revision)
        place = Path(cached) if isinstance(cached, str) else None
        commit = place.parents[file.count("/")].name if place else self.revision
        return {"base": self.path, "base_subfolder": self.subfolder, "revision": commit}


def locate(path_or_id: str | Path, *, subfolder: str = "", revision: str | None = None) -> Location:
    """Find a judge, and download it where it is a saved judge on the hub.

    Args:
        path_or_id: a folder; a hub id "owner/name"; or "owner/name/sub/folder" for a checkpoint inside a repository.
        subfolder: folder inside `path_or_id`.
        revision: commit, branch or tag of a hub repository.

    Returns:
        The folder or the snapshot of a saved judge; of a hub id that is no saved judge (a stock checkpoint, or nothing) the id.

    Raises:
        ValueError: a revision of a folder, or neither a folder nor a hub id.
    """
    folder = Path(path_or_id) / subfolder
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"revision {revision!r} is for hub repositories, {folder} is a folder; leave it out")
        return Location(str(folder))
    repository, inner = str(path_or_id), subfolder
    names = repository.split("/")
    if len(names) > 2 and names[0] not in ("", ".", "..", "~"):
        repository, inner = "/".join(names[:2]), "/".join([*names[2:], *([subfolder] if subfolder else [])])
    if not is_hub_id(repository) or Path(path_or_id).is_file():
        raise ValueError(f"judge {str(path_or_id)!r} {_no_folder(Path(path_or_id))}")
    return _snapshot(Location(repository, inner, revision, hub_is_away()))


def _no_folder(path: Path) -> str:
    """Return the fault of a path that is no folder, with the nearest name that is one."""
    if path.is_file():
        return "is a file; name the folder that holds judge_config.json"
    beside = [one.name for one in path.parent.iterdir() if one.is_dir()] if path.parent.is_dir() else []
    known = ["toy", *beside] if path.parent == Path() else beside
    near = difflib.get_close_matches(path.name, known, n=1)
    hint = f"; did you mean {str(path.with_name(near[0]))!r}?" if near else ""
    return f"is neither a folder nor a hub id such as owner/name{hint}"


def _snapshot(place: Location) -> Location:
    """Return the downloaded folder of a saved judge, any other place as it is."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError

    start = f"{place.subfolder}/" if place.subfolder else ""
    try:
        hf_hub_download(place.path, f"{start}{CONFIG_FILE}", revision=place.revision, local_files_only=place.is_offline)
    except (EntryNotFoundError, HFValidationError, RepositoryNotFoundError):
        return place
    patterns = [f"{start}{kind}" for kind in ("*.json", "*.safetensors", "*.jinja", "*.txt")]
    folder = snapshot_download(
        place.path, revision=place.revision, allow_patterns=patterns, local_files_only=place.is_offline
    )
    return Location(str(Path(folder) / start))
