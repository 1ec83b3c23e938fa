"""Run an exported network with ONNX Runtime, without torch and without this package.

    train export run --format onnx -o net.onnx
    python use_onnx.py net.onnx street.jpg street-with-car.jpg

Prints the share of object pixels; writes ``mask.png`` and ``depth.png`` at the size of the image.
The images are resized with antialiasing, as for training: a network that was trained on such images
is worse on pictures with aliasing.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image

path, bg_path, fg_bg_path = sys.argv[1:]
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["shardline"])
sides = [int(side) for side in str(about["res"]).split("x")]  # "64", or "128x224": height, width
size = (sides[-1], sides[0])


def read(image: Image.Image) -> np.ndarray:
    """Return an image as the network takes it: (1, 3, H, W) float32 in [0, 1]."""
    small = image.resize(size, Image.Resampling.BILINEAR)  # Pillow's BILINEAR antialiases.
    return np.asarray(small, np.float32).transpose(2, 0, 1)[None] / 255


fg_bg = Image.open(fg_bg_path).convert("RGB")
bg = Image.open(bg_path).convert("RGB").resize(fg_bg.size, Image.Resampling.BILINEAR)
images = {"bg": read(bg), "fg_bg": read(fg_bg)}
names = [output.name for output in session.get_outputs()]
maps = session.run(names, {each.name: images[each.name] for each in session.get_inputs()})
for name, values in zip(names, maps, strict=True):
    full = Image.fromarray(values[0, 0]).resize(fg_bg.size, Image.Resampling.BILINEAR)
    levels = np.asarray(full)
    if name == "mask":
        print(f"{(levels > 0.5).mean():.1%} of the pixels are object")
        Image.fromarray(np.where(levels > 0.5, 255, 0).astype(np.uint8)).save("mask.png")
    else:
        depth = about["formats"].get("depth", {"bits": 8})
        steps = np.rint(levels * (2 ** depth["bits"] - 1))
        kind = np.uint16 if depth["bits"] == 16 else np.uint8
        Image.fromarray(steps.astype(kind)).save("depth.png")
