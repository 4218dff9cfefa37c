#!/usr/bin/env python3
"""check_onnx.py BINARY FOLDER: compares exported ONNX models, run by onnxruntime, with vae-wgpu itself. Needs onnx, onnxruntime and safetensors.

Most models have random weights, statistics of norms included, and sizes of every kind; one is trained. Each is exported, checked with
onnx.checker, and run in batches of one image and of five. Latent vectors are compared with those of `vae-wgpu encode`, images with those of
`vae-wgpu reconstruct`. FOLDER is for files; the exported trained model stays in FOLDER/onnx.
"""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from load_in_pytorch import Config, names_and_shapes

LIMIT = 1e-5  # Relative to the largest value, if that is above 1.
COUNT = 6
SMALL = {"channels": 4, "blocks": 1, "latent_dim": 5}
MODELS = {
    "batch": Config(channels=8, blocks=2, latent_dim=8, likelihood="optimal"),
    "position": Config(**SMALL, norm="position"),
    "conditional": Config(**SMALL, head="flatten", likelihood="optimal", classes=10),
    # The decoder starts with images of 1x1 pixels, whose norms read what linear layers write.
    "single": Config(channels=2, blocks=1, groups=5, latent_dim=1, image_channels=1, norm="position", classes=3),
    "shallow": Config(channels=6, blocks=3, groups=1, latent_dim=3, image_channels=1),
}


def write_images(folder):
    """Writes random images with labels in the formats of CIFAR-10 and MNIST: the folders for models of three channels and of one."""
    random = np.random.default_rng(0)
    cifar, mnist = folder / "cifar-10-batches-bin", folder / "mnist"
    for path in (cifar, mnist):
        path.mkdir()

    def pixels(channels):
        # Noise on a gradient: neither flat nor without structure.
        ramp = np.linspace(0, 155, 32).astype(np.uint8)
        return ramp + random.integers(0, 100, (COUNT, channels, 32, 32), np.uint8)

    labels = np.arange(COUNT, dtype=np.uint8)
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        records = np.hstack([labels[:, None] + 3, pixels(3).reshape(COUNT, -1)])
        (cifar / name).write_bytes(records.tobytes())
    for name in ["train", "t10k"]:
        header = np.array([0x803, COUNT, 32, 32], ">u4")
        (mnist / f"{name}-images-idx3-ubyte").write_bytes(header.tobytes() + pixels(1).tobytes())
        header = np.array([0x801, COUNT], ">u4")
        (mnist / f"{name}-labels-idx1-ubyte").write_bytes(header.tobytes() + (labels % 3).tobytes())
    return {3: cifar, 1: mnist}


def read_images(data):
    """Returns the test images, as bytes."""
    if data.name == "mnist":
        return np.frombuffer((data / "t10k-images-idx3-ubyte").read_bytes()[16:], np.uint8).reshape(COUNT, 1, 32, 32)
    records = np.frombuffer((data / "test_batch.bin").read_bytes(), np.uint8).reshape(COUNT, -1)
    return records[:, 1:].reshape(COUNT, 3, 32, 32)


def write_weights(path, config):
    """Writes random weights under which values keep their order of magnitude from layer to layer."""
    random = np.random.default_rng(1)

    def values(name, shape):
        if name.endswith(("running_var", "variance")) or len(shape) == 1 and name.endswith("weight"):
            return random.uniform(0.5, 1.5, shape)
        return random.normal(0, 1 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.3, shape)

    tensors = {name: values(name, shape).astype(np.float32) for name, shape in names_and_shapes(config).items()}
    absent = [("head", "pool"), ("likelihood", "unit"), ("classes", 0)]
    sizes = {key: value for key, value in asdict(config).items() if (key, value) not in absent}
    save_file(tensors, path, metadata={"config": json.dumps(sizes)})


def dims(value):
    """Returns the sizes of a value. The inference of shapes names some batch sizes anew: all names are that of the batch."""
    return ["batch" if d.dim_param else d.dim_value for d in value.type.tensor_type.shape.dim]


def check_file(path, config, run, variance):
    """Checks an exported file without running it."""
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path)
    declared = {value.name: dims(value) for value in model.graph.value_info}
    del model.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    for value in inferred.graph.value_info:
        if value.name in declared and declared.pop(value.name) != dims(value):
            raise ValueError(f"{path}: `{value.name}` is declared with another shape than {dims(value)}")
    if declared:
        raise ValueError(f"{path}: no node writes {', '.join(declared)}")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    found = Config.from_json(metadata["config"]), metadata["run"], metadata["input_range"], model.producer_name
    if found != (config, run, "[-1, 1]", "vae-wgpu"):
        raise ValueError(f"{path}: other metadata than expected: {found}")
    if not np.isclose(float(metadata["sigma"]) ** 2, variance):
        raise ValueError(f"{path}: sigma is {metadata['sigma']}, the variance {variance}")


def run_in_batches(path, inputs):
    """Returns the outputs for the first element, then for the others, as one batch each."""
    session = onnxruntime.InferenceSession(path)
    parts = [session.run(None, {name: x[part] for name, x in inputs.items()}) for part in (slice(0, 1), slice(1, None))]
    return {output.name: np.concatenate(both) for output, *both in zip(session.get_outputs(), *parts, strict=True)}


def compare(name, what, found, expected):
    if found.shape != expected.shape:
        raise ValueError(f"{name}: {what} has shape {found.shape}, expected {expected.shape}")
    difference, largest = np.abs(found - expected).max(), np.abs(expected).max()
    print(f"{name}: {what} up to {largest:.2f}, largest difference {difference:.1e}")
    if not difference <= LIMIT * max(1, largest):
        raise ValueError(f"{name}: {what} differs by {difference:.1e}")


def check_model(binary, name, weights, data, folder, half=False):
    """Exports a model and compares it with vae-wgpu on the test images of a data set."""

    def command(*arguments):
        done = subprocess.run([binary, *arguments], capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"{name}: {arguments[0]} failed: {done.stderr.strip()}")

    halves = ["--half"] if half else []
    command("export", weights, "--format", "onnx", "--out", folder, *halves)
    run = weights.name
    if half:
        # Both load the same rounded weights.
        command("export", weights, "--half", "--out", folder / "half.safetensors")
        weights = folder / "half.safetensors"
    latents, images = folder / "latents.safetensors", folder / "images.safetensors"
    command("encode", weights, "--data", data, "--device", "cpu", "--out", latents)
    command("reconstruct", weights, "--data", data, "-n", str(COUNT), "--raw", "--device", "cpu", "--out", images)
    tensors = load_file(weights / "model.safetensors" if weights.is_dir() else weights)
    latents, images = load_file(latents), load_file(images)
    encoder, decoder = folder / "encoder.onnx", folder / "decoder.onnx"
    config = trained_config(binary, weights)
    for path in (encoder, decoder):
        check_file(path, config, run, tensors.get("loss.variance", np.ones(1)).item())
    labels = {"labels": np.eye(config.classes, dtype=np.float32)[latents["label"]]} if config.classes else {}
    found = run_in_batches(encoder, {"images": read_images(data) / np.float32(127.5) - 1, **labels})
    compare(name, "mu", found["mu"], latents["mu"])
    compare(name, "log_std", found["log_std"], latents["log_std"])
    found = run_in_batches(decoder, {"z": latents["mu"], **labels})
    compare(name, "mean", found["mean"], images["reconstructions"])


def trained_config(binary, weights):
    """Returns the sizes in the metadata of a run or a file with weights."""
    path = weights / "model.safetensors" if weights.is_dir() else weights
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return Config.from_json(header["__metadata__"]["config"])


def main():
    binary, folder = sys.argv[1], Path(sys.argv[2])
    images = write_images(folder)
    for name, config in MODELS.items():
        weights = folder / f"{name}.safetensors"
        write_weights(weights, config)
        for half in (False, True) if name == "batch" else (False,):
            title = f"{name}, half" if half else name
            check_model(binary, title, weights, images[config.image_channels], folder / title, half)
    run = folder / "run"
    options = "--quiet --channels 4 --blocks 1 --latent-dim 4 --batch-size 10 --epochs 1 --val-split 0 --device cpu"
    subprocess.run([binary, "train", *options.split(), "--data", images[3], "--out", run], check=True)
    check_model(binary, "trained", run, images[3], folder / "onnx")


if __name__ == "__main__":
    main()
