"""The edits that the model learns, each with the exact operation and the ways to ask for it.

A picture is a tensor (3, H, W) in 0..1, and so is what comes of it.
"""

import random
from dataclasses import dataclass
from typing import Callable

import torch
import torch.nn.functional as F

Picture = torch.Tensor


@dataclass(frozen=True)
class Edit:
    apply: Callable[[Picture], Picture]
    phrases: tuple[str, ...]

    def __call__(self, picture: Picture) -> Picture:
        return self.apply(picture).clamp(0, 1)


def luma(picture: Picture) -> Picture:
    red, green, blue = picture
    return (0.299 * red + 0.587 * green + 0.114 * blue).expand(3, -1, -1)


def gaussian(picture: Picture, sigma: float) -> Picture:
    radius = int(3 * sigma)
    distance = torch.arange(-radius, radius + 1).float()
    kernel = torch.exp(-(distance**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    padded = F.pad(picture[None], (radius,) * 4, mode="reflect")
    rows = F.conv2d(padded, kernel, groups=3)
    return F.conv2d(rows, kernel.transpose(2, 3), groups=3)[0]


def tint(picture: Picture, red: float, green: float, blue: float) -> Picture:
    return picture * torch.tensor([red, green, blue]).reshape(3, 1, 1)


def saturate(picture: Picture, factor: float) -> Picture:
    gray = luma(picture)
    return gray + (picture - gray) * factor


def sketch(picture: Picture) -> Picture:
    """The gray picture dodged by its blurred negative."""
    gray = luma(picture)
    return (gray / (1 - gaussian(1 - gray, 2.0) + 1e-3)).clamp(0, 1)


EDITS = {
    "black and white": Edit(
        luma,
        (
            "make it black and white",
            "black and white",
            "convert to grayscale",
            "remove the colors",
            "monochrome photo",
            "turn this into a black and white photo",
            "desaturate the image",
            "make the photo grey",
        ),
    ),
    "sepia": Edit(
        lambda x: tint(luma(x), 1.07, 0.86, 0.62),
        ("make it sepia", "sepia tone", "make it look like an old photo", "vintage sepia photo", "add a sepia filter", "old brown photograph"),
    ),
    "invert": Edit(
        lambda x: 1 - x,
        ("invert the colors", "make it a negative", "photo negative", "inverted colors", "invert the image"),
    ),
    "brighter": Edit(
        lambda x: x**0.55,
        ("make it brighter", "brighten the image", "increase the brightness", "lighten the photo", "more light"),
    ),
    "darker": Edit(
        lambda x: x**1.8,
        ("make it darker", "darken the image", "decrease the brightness", "reduce the exposure", "less light"),
    ),
    "contrast": Edit(
        lambda x: (x - 0.5) * 1.6 + 0.5,
        ("increase the contrast", "more contrast", "make it high contrast", "boost contrast", "punchy contrast"),
    ),
    "fade": Edit(
        lambda x: (x - 0.5) * 0.55 + 0.58,
        ("reduce the contrast", "faded look", "make it faded", "low contrast", "washed out film look"),
    ),
    "warmer": Edit(
        lambda x: tint(x, 1.18, 1.02, 0.75),
        ("make it warmer", "warm tones", "add a warm filter", "golden hour light", "make it look like sunset"),
    ),
    "colder": Edit(
        lambda x: tint(x, 0.78, 0.98, 1.2),
        ("make it colder", "cool tones", "add a cold blue filter", "make it look like winter", "cooler temperature"),
    ),
    "vivid": Edit(
        lambda x: saturate(x, 1.9),
        ("make the colors vivid", "increase saturation", "more vibrant colors", "saturate the image", "boost the colors"),
    ),
    "muted": Edit(
        lambda x: saturate(x, 0.45),
        ("mute the colors", "decrease saturation", "less colorful", "muted tones", "pastel muted colors"),
    ),
    "night": Edit(
        lambda x: tint(x**1.4, 0.38, 0.45, 0.8),
        ("make it night", "turn day into night", "night time", "make it look like night", "moonlight scene"),
    ),
    "blur": Edit(
        lambda x: gaussian(x, 2.0),
        ("blur the image", "make it blurry", "blur", "out of focus", "apply a gaussian blur", "soft focus blur"),
    ),
    "sharpen": Edit(
        lambda x: x + 1.2 * (x - gaussian(x, 1.2)),
        ("sharpen the image", "make it sharper", "increase sharpness", "more detail and sharpness", "sharpen"),
    ),
    "sketch": Edit(
        sketch,
        ("make it a pencil sketch", "pencil drawing", "turn it into a sketch", "draw it with a pencil", "sketch style"),
    ),
    "posterize": Edit(
        lambda x: (x * 3).round() / 3,
        ("posterize the image", "poster style", "make it a poster with few colors", "reduce the number of colors", "comic poster"),
    ),
    "red": Edit(
        lambda x: tint(luma(x), 1.1, 0.35, 0.35),
        ("tint it red", "make it red", "red monochrome", "apply a red filter", "everything red"),
    ),
    "green": Edit(
        lambda x: tint(luma(x), 0.35, 1.05, 0.4),
        ("tint it green", "make it green", "green monochrome", "apply a green filter", "matrix green look"),
    ),
    "blue": Edit(
        lambda x: tint(luma(x), 0.3, 0.5, 1.15),
        ("tint it blue", "make it blue", "blue monochrome", "apply a blue filter", "cyanotype"),
    ),
    "purple": Edit(
        lambda x: tint(luma(x), 0.85, 0.35, 1.1),
        ("tint it purple", "make it purple", "purple monochrome", "apply a purple filter"),
    ),
    "nothing": Edit(
        lambda x: x,
        ("keep it as it is", "do nothing", "no change", "leave the photo unchanged", ""),
    ),
}
# What people put before and after; the empty ones are the usual case.
BEFORE = ("", "", "", "please ", "can you ", "could you please ", "i want you to ")
AFTER = ("", "", "", " please", ".", " a bit", " now", "!")


def ask(name: str, chance: random.Random) -> str:
    """One of the ways to ask for an edit."""
    return chance.choice(BEFORE) + chance.choice(EDITS[name].phrases) + chance.choice(AFTER)


def corpus() -> list[str]:
    """All that the tokenizer learns its words from."""
    return [phrase for edit in EDITS.values() for phrase in edit.phrases] + [text for text in BEFORE + AFTER if text.strip()]
