"""The photos that the networks learn from, and random pieces of them."""

import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

# Smaller files are icons and textures.
SMALLEST_FILE = 30_000
# Enough for crops at four scales, and it keeps the archive in memory.
SHORT_SIDE = 640
# Of scikit-image's samples, those that come with it; astronaut, chelsea and coffee are held out for the test.
SAMPLES = ["hubble_deep_field", "immunohistochemistry", "retina", "rocket", "colorwheel", "grass", "gravel", "brick"]


def collect(folders: list[pathlib.Path], out: pathlib.Path) -> None:
    """Gathers all photos below `folders`, scaled down, into one archive."""
    import skimage.data

    pictures = []
    for path in sorted(path for folder in folders for path in folder.rglob("*")):
        if path.suffix.lower() not in (".jpg", ".jpeg", ".png") or path.is_symlink() or path.stat().st_size < SMALLEST_FILE:
            continue
        try:
            pictures.append(Image.open(path).convert("RGB"))
        except OSError as error:
            print(f"{path}: left out: {error}")
    samples = [getattr(skimage.data, name)() for name in SAMPLES] + [skimage.data.stereo_motorcycle()[0]]
    pictures += [Image.fromarray(sample).convert("RGB") for sample in samples]
    arrays = [np.asarray(shrink(picture)) for picture in pictures]
    np.savez(out, *arrays)
    print(f"{out}: {len(arrays)} photos, {sum(array.shape[0] * array.shape[1] for array in arrays) / 1e6:.1f} megapixels")


def shrink(picture: Image.Image) -> Image.Image:
    factor = SHORT_SIDE / min(picture.size)
    if factor >= 1:
        return picture
    return picture.resize(tuple(round(side * factor) for side in picture.size), Image.Resampling.LANCZOS)


class Photos:
    """Random pieces of the archive's photos."""

    def __init__(self, archive: pathlib.Path, seed: int) -> None:
        with np.load(archive) as arrays:
            self.photos = [arrays[name] for name in arrays.files]
        self.chance = np.random.RandomState(seed)

    def crop(self, side: int, scales: list[int]) -> torch.Tensor:
        """A square of (3, side, side) in 0..1, mirrored or not, its channels exchanged now and then."""
        photo = self.photos[self.chance.randint(len(self.photos))]
        scale = self.chance.choice(scales)
        while scale > 1 and side * scale > min(photo.shape[:2]):
            scale -= 1
        taken = side * scale
        top = self.chance.randint(photo.shape[0] - taken + 1)
        left = self.chance.randint(photo.shape[1] - taken + 1)
        piece = torch.from_numpy(photo[top : top + taken, left : left + taken].copy()).permute(2, 0, 1).float() / 255
        if scale > 1:
            piece = F.avg_pool2d(piece[None], int(scale))[0]
        if self.happens(0.5):
            piece = piece.flip(2)
        if self.happens(0.3):
            piece = piece[torch.from_numpy(self.chance.permutation(3))]
        return piece

    def varied(self, side: int, scales: list[int]) -> torch.Tensor:
        """A crop, now and then gray, negative, or of another contrast: an edit's results must be encoded too."""
        piece = self.crop(side, scales)
        if self.happens(0.15):
            piece = piece.mean(0, keepdim=True).expand(3, -1, -1)
        if self.happens(0.1):
            piece = 1 - piece
        if self.happens(0.15):
            piece = ((piece - 0.5) * self.chance.uniform(0.5, 1.6) + 0.5 + self.chance.uniform(-0.16, 0.16)).clamp(0, 1)
        return piece

    def happens(self, probability: float) -> bool:
        return self.chance.rand() < probability


def held_out() -> dict[str, torch.Tensor]:
    """The photos of the test, (1, 3, H, W) in 0..1, sides cut to multiples of 8."""
    import skimage.data

    found = {}
    for name in ["astronaut", "coffee", "chelsea"]:
        photo = getattr(skimage.data, name)()
        height, width = (side // 8 * 8 for side in photo.shape[:2])
        found[name] = torch.from_numpy(photo[:height, :width].copy()).permute(2, 0, 1)[None].float() / 255
    return found
