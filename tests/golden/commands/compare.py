"""What was stored beside what is found now.

On the machine and the packages that the stored numbers were made with, everything is equal to the last character.
Elsewhere sums round differently: there `bits:...` says nothing, and numbers with a point may differ a little. Text,
whole numbers, names, keys and fingerprints of files are equal everywhere.
"""

import difflib
import json
import math
import re

PROBE = r"""
import hashlib, json
from importlib.metadata import PackageNotFoundError, version
import cv2, numpy as np, torch
import torch.nn.functional as F

torch.manual_seed(0)
digest = hashlib.sha256()
x, w = torch.randn(37, 129), torch.randn(129, 65, requires_grad=True)
y = F.gelu(F.layer_norm(x @ w, (65,))).softmax(-1)
y.square().sum().backward()
image = torch.randn(2, 3, 40, 48)
maps = F.conv2d(image, torch.randn(8, 3, 5, 5), stride=2)
found = [x, y, w.grad, maps, F.interpolate(maps, (9, 11), mode="bicubic"), (y @ y.T).topk(5).values, y.log().sum(0)]
for value in found:
    digest.update(value.detach().contiguous().numpy().tobytes())
kernel, matrix = np.float32([0.2, 0.6, 0.2]), np.float32([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
for height, width in ((64, 80), (37, 53)):
    picture = (np.arange(height * width * 3).reshape(height, width, 3) ** 2 * 37 % 251).astype(np.uint8)
    hsv = cv2.cvtColor(picture, cv2.COLOR_RGB2HSV_FULL)
    made = [hsv, cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL), cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)]
    made += [cv2.transform(picture, matrix), np.float64(cv2.mean(picture)), cv2.GaussianBlur(picture, (0, 0), 1.3)]
    for image in (picture, picture.astype(np.float32)):
        made += [cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)]
        made += [cv2.warpAffine(image, np.float32([[0.9, 0.1, 2], [-0.1, 1.1, 1]]), (50, 40))]
        for how in (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC):
            made.append(cv2.resize(image, (33, 27), interpolation=how))
    for value in made:
        digest.update(value.tobytes())
packages = {}
for name in ("torch", "torchvision", "timm", "numpy", "pillow", "opencv-python-headless", "onedl-mmcv"):
    try:
        packages[name] = version(name)
    except PackageNotFoundError:
        packages[name] = None
words = {name: version(name) for name in ("typer", "rich")}
facts = {"capability": torch.backends.cpu.get_cpu_capability(), "arithmetic": digest.hexdigest()}
print(json.dumps(facts | {"packages": packages, "help": words}, indent=1))
"""
BITS = re.compile(r"bits:\w+")
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+(?:e[+-]?\d+)?|e[+-]?\d+)(?![\w.]*\w)")
SMALL = 1e-6  # below this a number is rounding


def differences(name: str, stored: str, found: str, exact: bool, tolerance: float = 1e-3) -> str:
    """A unified diff of what differs, '' if nothing does. exact: see above; tolerance: of numbers, relative."""
    before, after = (text.splitlines() for text in (stored, found))
    if not exact:
        match = difflib.SequenceMatcher(None, [loose(x) for x in before], [loose(x) for x in after], autojunk=False)
        for a, b, count in match.get_matching_blocks():
            for i in range(count):
                if close(before[a + i], after[b + i], tolerance):
                    after[b + i] = before[a + i]
    diff = difflib.unified_diff(before, after, f"{name} (stored)", f"{name} (now)", lineterm="", n=2)
    return "\n".join(diff)


def loose(line: str) -> str:
    """A line without what may differ elsewhere."""
    return NUMBER.sub("#", BITS.sub("bits:", line))


def close(one: str, two: str, tolerance: float) -> bool:
    """Whether the numbers of two lines that are alike otherwise agree."""
    pairs = zip(*(map(float, NUMBER.findall(BITS.sub("", x))) for x in (one, two)), strict=True)
    return all(math.isclose(a, b, rel_tol=tolerance, abs_tol=SMALL) for a, b in pairs)


def words(text: str) -> str:
    """The words of a help text, whatever width and frames another version of rich gives them."""
    return "\n".join(sorted(re.findall(r"[\w.,:=/<>|'*-]*\w[\w.,:=/<>|'*-]*", text)))


def same_environment(stored: str, found: str, keys: tuple[str, ...] = ("capability", "arithmetic", "packages")) -> bool:
    """Whether numbers can be expected to be the stored ones to the last bit; ("help",): help texts to the letter."""
    one, two = json.loads(stored), json.loads(found)
    return all(one[key] == two[key] for key in keys)
