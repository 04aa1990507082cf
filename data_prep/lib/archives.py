"""Scenes inside a .tar or .tar.gz, read as if the archive were unpacked, without unpacking it.

A first pass lists where each scene lies. A plain .tar is then read in any order; a compressed one
has no places to go to, so its scenes are read as they come, from the front again for each shard
that lies before the last. Memory holds one scene at a time and the list.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from escherjax.errors import UserError

SUFFIXES = (".tar", ".tar.gz", ".tgz")
MAX_SCENE_BYTES = 1 << 30
READ_BYTES = 1 << 20
DAMAGES = (tarfile.TarError, OSError, EOFError, zlib.error)


def is_archive(path: Path) -> bool:
    """Whether `path` names an archive that `Archive` reads, by its ending."""
    return path.name.endswith(SUFFIXES)


@dataclasses.dataclass(frozen=True)
class MemberFile:
    """A file of an archive, read already; stands in for a Path."""

    name: str
    data: bytes

    def read_bytes(self) -> bytes:
        """The content."""
        return self.data

    def __str__(self) -> str:
        return self.name


@dataclasses.dataclass(frozen=True)
class MemberFolder:
    """A folder of an archive with its files in memory; stands in for a Path."""

    name: str
    files: dict[str, bytes]

    def list(self) -> list[str]:
        """Names of the files, sorted."""
        return sorted(self.files)

    def __truediv__(self, name: str) -> MemberFile:
        return MemberFile(f"{self.name}/{name}", self.files[name])

    def __str__(self) -> str:
        return self.name


class Archive:
    """Random or forward access to the scene folders of an archive.

    Args:
        path: the archive.
        is_view: whether a file of this name makes its folder a scene; other files are passed over.
        cache: a list of the archive made earlier; used if the archive is still the same.

    Raises:
        UserError: if there is no such file, it is damaged or cut off, or holds no scene.
    """

    def __init__(self, path: Path, is_view: Callable[[str], bool], cache: Path):
        self.path, self._is_view = path, is_view
        self.is_compressed = path.suffix != ".tar"
        self._stream: Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]] | None = None
        self._position = 0
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f"--source {path} cannot be read ({error}).") from error
        identity = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
        listed = json.loads(cache.read_text()) if cache.exists() else {}
        if listed.get("identity") != identity:
            listed = {"identity": identity, **self._list()}
            cache.parent.mkdir(parents=True, exist_ok=True)
            cache.write_text(json.dumps(listed))
        # Members that were refused, by name, with the reason
        self.refused: dict[str, str] = listed["refused"]
        # Where the views of a folder lie: [offset of the first, number of views]
        self._runs: dict[str, list[list[int]]] = listed["runs"]
        if not self._runs:
            raise UserError(f"no scenes in {path}; expected folders with 000.png and 000.npy, ...")

    def scenes(self) -> list[tuple[str, str]]:
        """(id, folder inside the archive) of every scene, sorted by id.

        Ids are paths inside the archive, without a top folder that all of them share.
        """
        folders = [PurePosixPath(name) for name in self._runs]
        known = set(folders)
        # Nothing is looked for inside a scene
        folders = [path for path in folders if known.isdisjoint(path.parents)]
        shares_top = len({path.parts[:1] for path in folders}) == 1
        stem = self.path.name.removesuffix(".gz").removesuffix(".tar").removesuffix(".tgz")

        def scene_id(path: PurePosixPath) -> str:
            parts = path.parts[1:] if shares_top and len(path.parts) > 1 else path.parts
            return "/".join(parts) or stem

        return sorted((scene_id(path), str(path)) for path in folders)

    def order(self, folder: str) -> int:
        """Sorts scenes as a compressed archive is read fastest."""
        return self._runs[folder][0][0]

    def fetch(self, folder: str) -> MemberFolder | UserError:
        """The views of a scene, or why it cannot be used; see `read`."""
        try:
            return self.read(folder)
        except UserError as error:
            return error

    def read(self, folder: str) -> MemberFolder:
        """The views of a scene. Of a file that is there twice the later counts, as on unpacking.

        Raises UserError if members of it were refused, it is too large, or lies in several parts
        of a compressed archive.
        """
        name = f"{self.path}/{folder}"
        refused = [
            f"{member} ({reason})"
            for member, reason in self.refused.items()
            if str(PurePosixPath(member).parent) == folder
        ]
        if refused:
            raise UserError(f"{name} has members that were refused: {'; '.join(refused)}.")
        runs = self._runs[folder]
        if self.is_compressed and len(runs) > 1:
            raise UserError(
                f"{name} lies in {len(runs)} parts of a compressed archive; expected its files "
                "side by side. Decompress it to a .tar."
            )
        files: dict[str, bytes] = {}
        for start, count in runs:
            for member, data in self._read_run(start, count, folder):
                files[member] = data
                if sum(map(len, files.values())) > MAX_SCENE_BYTES:
                    raise UserError(f"{name} holds more than {MAX_SCENE_BYTES} bytes.")
        return MemberFolder(name, files)

    def _read_run(self, start: int, count: int, folder: str) -> Iterator[tuple[str, bytes]]:
        """(name, content) of so many views from an offset on."""
        if self._stream is None or not self.is_compressed or self._position > start:
            self._stream = self._members(0 if self.is_compressed else start)
        while count:
            try:
                info, archive = next(self._stream)
                self._position = info.offset + 1
                if info.offset < start or self._folder_of_view(info) is None:
                    continue
                if info.size > MAX_SCENE_BYTES:
                    raise UserError(f"{self.path}/{info.name} has {info.size} bytes.")
                file: Any = archive.extractfile(info)
                data = file.read()
            except (StopIteration, *DAMAGES) as error:
                self._stream = None
                raise UserError(
                    f"{self.path}/{folder} can no longer be read ({type(error).__name__}); has the "
                    "archive changed?"
                ) from error
            count -= 1
            yield PurePosixPath(info.name).name, data

    def _list(self) -> dict[str, Any]:
        """Where the archive's scenes lie, and what was refused."""
        from tqdm import tqdm

        runs: dict[str, list[list[int]]] = {}
        refused: dict[str, str] = {}
        last = None
        with tqdm(desc=f"listing {self.path}", unit="member", mininterval=1) as bar:
            try:
                for info, _ in self._members(0):
                    bar.update()
                    if reason := _refusal(info):
                        refused[info.name] = reason
                        continue
                    folder = self._folder_of_view(info)
                    if folder is None:
                        continue
                    parts = runs.setdefault(folder, [])
                    if folder != last:
                        parts.append([info.offset, 0])
                        last = folder
                    parts[-1][1] += 1
            except DAMAGES as error:
                raise UserError(
                    f"{self.path} is damaged or cut off behind {bar.n} members "
                    f"({type(error).__name__}); copy it again."
                ) from error
        return {"runs": runs, "refused": refused}

    def _folder_of_view(self, info: tarfile.TarInfo) -> str | None:
        """The folder that a member is a view of, or None."""
        path = PurePosixPath(info.name)
        is_view = info.isreg() and _refusal(info) is None and self._is_view(path.name)
        return str(path.parent) if is_view else None

    def _members(self, start: int) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
        """Members from an offset on, in order, each with the archive to extract it from."""
        archive: Any
        with contextlib.ExitStack() as stack:
            file: Any = stack.enter_context(self.path.open("rb", buffering=READ_BYTES))
            mode: Any = "r:"
            if self.is_compressed:
                # Not tarfile's own decompression, which ends at the first of joined .gz files
                file, mode = stack.enter_context(gzip.GzipFile(fileobj=file)), "r|"
            file.seek(start)
            archive = stack.enter_context(
                tarfile.open(None, mode, file, READ_BYTES, tarinfo=_StrictInfo)
            )
            while (info := archive.next()) is not None:
                archive.members.clear()  # it would keep every one
                yield info, archive


class _StrictInfo(tarfile.TarInfo):
    """Ends at the end mark alone: tarfile takes damage, and a file cut off, for the end too."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:  # type: ignore[override]
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def _refusal(info: tarfile.TarInfo) -> str | None:
    """Why a member must not be read, or None. Folders and files that stay inside may."""
    path = PurePosixPath(info.name)
    if path.is_absolute() or ".." in path.parts or "\\" in info.name:
        return "leads out of the folder"
    if not (info.isreg() or info.isdir()):
        return "is a link" if info.islnk() or info.issym() else "is a device or no plain file"
    return None
