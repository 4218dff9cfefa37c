"""check_onnx_browser.py FOLDER: compares the image in FOLDER/drawn.json, which the code for browsers drew, with onnxruntime's."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

folder = Path(sys.argv[1])
found = json.loads((folder / "drawn.json").read_text())
z = np.array(found["z"]["data"], np.float32).reshape(found["z"]["dims"])
(mean,) = onnxruntime.InferenceSession(folder / "onnx" / "decoder.onnx").run(None, {"z": z})
_, channels, height, width = mean.shape
image = found["image"]
if [found["at"], found["canvas"], [image["width"], image["height"]]] != [[0, 0], [width, height], [width, height]]:
    raise ValueError(f"browser: the image is not as large as the canvas: {found['canvas']}")
pixels = np.array(image["data"]).reshape(height, width, 4)
if channels != 3 or pixels[..., :3].std() == 0 or (pixels[..., 3] != 255).any():
    raise ValueError("browser: not an opaque image in colours")
difference = np.abs(pixels[..., :3] - ((mean[0].transpose(1, 2, 0) + 1) * 127.5).clip(0, 255)).max()
print(f"browser: largest difference {difference:.3f} of 255")
# Rounding to a byte, and that of the sums.
if difference > 0.51:
    raise ValueError("browser: the image differs from that of onnxruntime")
