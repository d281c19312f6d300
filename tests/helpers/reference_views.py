"""The official view pipeline (facebookresearch/dino 7c446df, main_dino.py: torchvision's PIL transforms, then Pillow's
GaussianBlur and solarize), applied to parameters that were drawn elsewhere. Slow and plain on purpose."""

import io

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import functional as F

_MODES = {"bicubic": F.InterpolationMode.BICUBIC, "bilinear": F.InterpolationMode.BILINEAR}
_JITTER = {
    "brightness": F.adjust_brightness,
    "contrast": F.adjust_contrast,
    "saturation": F.adjust_saturation,
    "hue": F.adjust_hue,
}


def decode(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def pre_resize(image: Image.Image, size: int | None) -> Image.Image:
    return image if size is None else F.resize(image, [size, size], F.InterpolationMode.BILINEAR)


def view_of(view, image: Image.Image) -> Image.Image:
    """All steps of one view, up to the 8-bit picture."""
    left, top, width, height = view.box
    x = F.resized_crop(image, top, left, height, width, [view.size, view.size], _MODES[view.interpolation])
    if view.flip:
        x = F.hflip(x)
    for operation, factor in view.jitter:
        x = _JITTER[operation](x, factor)
    if view.gray:
        x = F.to_grayscale(x, num_output_channels=3)
    if view.blur > 0:
        x = x.filter(ImageFilter.GaussianBlur(radius=view.blur))
    if view.solarize is not None:
        x = ImageOps.solarize(x, view.solarize)
    return x


def to_tensor(image: Image.Image, mean, std):
    """float32 [3, S, S], normalised."""
    return F.normalize(F.to_tensor(image), mean, std)


def levels(image: Image.Image) -> np.ndarray:
    """uint8 [3, S, S]"""
    return np.asarray(image).transpose(2, 0, 1)


def picture(seed: int, height: int = 375, width: int = 500) -> np.ndarray:
    """A drawn picture with the texture, edges and colours of a photograph, uint8 RGB [H, W, 3]: noise of all scales
    (amplitude falls with frequency as in natural images), shapes with shading, a little grain."""
    rng = np.random.default_rng(seed)
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) + 1 / max(height, width)
    layers = []
    for _ in range(3):
        spectrum = rng.normal(size=radius.shape) + 1j * rng.normal(size=radius.shape)
        layer = np.fft.irfft2(spectrum * radius**-1.3, s=(height, width))
        layers.append(layer / layer.std())
    # one strong layer of light shared by the channels, weak layers of colour
    x = 115 + 45 * layers[0][..., None] + 25 * np.stack(layers, -1) * rng.uniform(0.2, 1, 3)
    rows, columns = np.mgrid[:height, :width]
    for _ in range(12):
        centre = rng.uniform(0, [height, width])
        radii = rng.uniform(0.03, 0.25, 2) * min(height, width) + 1
        distance = ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2
        colour = rng.uniform(0, 255, 3)
        x = np.where((distance < 1)[..., None], 0.3 * x + colour * (1 - 0.4 * distance[..., None]), x)
    return np.clip(x + rng.normal(scale=3, size=x.shape), 0, 255).astype(np.uint8)
