"""What the loader is measured against: plain PyTorch over Zero-1-to-3 render folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image


class FolderDataset(torch.utils.data.Dataset):
    """Random views of scene folders, read as Zero-1-to-3 trains: 000.png (RGBA) with 000.npy.

    An item is (pictures float32 [n, 3, size, size] in [-1, 1], world-to-camera float32 [n, 3, 4]).
    Each picture is decoded, whitened where alpha is 0, resized by PIL and made a tensor.
    """

    def __init__(self, folders: list[Path], views_per_item: int, size: int):
        self.folders, self.views_per_item, self.size = folders, views_per_item, size
        self.num_views = len(list(folders[0].glob("*.png")))

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        views = np.random.randint(0, self.num_views, self.views_per_item)
        paths = [self.folders[index] / f"{view:03d}" for view in views]
        pictures = [self._picture(path.with_suffix(".png")) for path in paths]
        poses = [torch.from_numpy(np.load(p.with_suffix(".npy"))).float() for p in paths]
        return torch.stack(pictures), torch.stack(poses)

    def _picture(self, path: Path) -> torch.Tensor:
        pixels = np.array(Image.open(path).convert("RGBA"))
        pixels[pixels[..., 3] == 0] = 255
        image = Image.fromarray(pixels[..., :3])
        if image.width != self.size:
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255)
        return tensor.mul_(2).sub_(1)


def endless_batches(folders: list[Path], views_per_item: int, size: int, batch: int, workers: int):
    """Batches of a shuffled DataLoader, epoch after epoch. workers: processes; 0: this one."""
    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(
        FolderDataset(folders, views_per_item, size),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader
