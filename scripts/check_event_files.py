"""check_event_files.py RUN: compares what TensorBoard reads from the event files of a run with its tables, images, weights and settings."""

import csv
import json
import struct
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams import metadata

STEP = {
    "step/loss": "total",
    "step/reconstruction": "recon",
    "step/kl": "kl",
    "step/gradient_norm": "grad_norm",
    "step/learning_rate": "lr",
    "step/images_per_second": "images_per_s",
}
EPOCH = {
    "train/loss": "train_total",
    "train/reconstruction": "train_recon",
    "train/kl": "train_kl",
    "validation/loss": "val_total",
    "validation/reconstruction": "val_recon",
    "validation/kl": "val_kl",
    "validation/mse": "val_mse",
    "validation/bits_per_dim": "val_bits",
    "validation/active_units": "active_units",
    "epoch/seconds": "seconds",
}


def same(what, found, expected):
    if found != expected:
        sys.exit(f"{what}: TensorBoard has {found}, the run {expected}")


def single(number):
    """Rounds to single precision."""
    return struct.unpack("f", struct.pack("f", float(number)))[0]


def png_size(png):
    return struct.unpack(">II", png[16:24])


def flat(settings, prefix=""):
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value


run = Path(sys.argv[1])
folder = run / "tensorboard"
steps = list(csv.DictReader((run / "metrics.csv").open()))
epochs = list(csv.DictReader((run / "epochs.csv").open()))
last = {row["epoch"]: int(row["step"]) for row in steps}
at = [last[row["epoch"]] for row in epochs]

# Zero means that TensorBoard keeps all values.
board = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "histograms": 0, "tensors": 0})
board.Reload()
tags = board.Tags()

same("scalars", sorted(tags["scalars"]), sorted([*STEP, *EPOCH]))
for table, where, columns in ((steps, [int(row["step"]) for row in steps], STEP), (epochs, at, EPOCH)):
    for tag, column in columns.items():
        found = [(event.step, event.value) for event in board.Scalars(tag)]
        same(tag, found, [(step, single(row[column])) for step, row in zip(where, table)])

same("images", sorted(tags["images"]), ["originals", "reconstructions", "samples"])
for tag, image_folder, images in (
    ("originals", "reconstructions", [(0, "originals")]),
    ("reconstructions", "reconstructions", [(step, f"epoch_{int(row['epoch']):02}") for step, row in zip(at, epochs)]),
    ("samples", "samples", [(step, f"epoch_{int(row['epoch']):02}") for step, row in zip(at, epochs)]),
):
    found = board.Images(tag)
    same(f"steps of {tag}", [image.step for image in found], [step for step, _ in images])
    for image, (_, name) in zip(found, images):
        png = (run / image_folder / f"{name}.png").read_bytes()
        same(f"size of {tag} {name}", (image.width, image.height), png_size(png))
        same(f"bytes of {tag} {name}", image.encoded_image_string == png, True)

# The header of a safetensors file is JSON; the model also has running statistics, which have no gradients.
header = (run / "checkpoint.safetensors").read_bytes()
header = json.loads(header[8 : 8 + struct.unpack("<Q", header[:8])[0]])
sizes = {}
for name, tensor in header.items():
    if name.startswith("adam.m/"):
        sizes[name.removeprefix("adam.m/")] = 1
        for size in tensor["shape"]:
            sizes[name.removeprefix("adam.m/")] *= size
same("histograms", sorted(tags["histograms"]), sorted(f"gradients/{name}" for name in sizes))
squares = dict.fromkeys(at, 0.0)
for name, size in sizes.items():
    found = board.Histograms(f"gradients/{name}")
    same(f"steps of gradients/{name}", [event.step for event in found], at)
    for event in found:
        value = event.histogram_value
        same(f"number of gradients/{name}", (value.num, sum(value.bucket)), (size, size))
        squares[event.step] += value.sum_squares
# Together they have the norm that the run reports.
norms = {int(row["step"]): float(row["grad_norm"]) for row in steps}
for step, square in squares.items():
    same(f"norm of the gradients of step {step}", abs(square**0.5 / norms[step] - 1) < 1e-4, True)

settings = json.loads((run / "config.json").read_text())["settings"]
content = board.PluginTagToContent(metadata.PLUGIN_NAME)[metadata.SESSION_START_INFO_TAG]
hparams = metadata.parse_session_start_info_plugin_data(content).hparams
found = {name: getattr(value, value.WhichOneof("kind")) for name, value in hparams.items()}
# TensorBoard keeps the settings of the first part of the run.
same("hyperparameters", found, dict(flat(settings)) | {"epochs": 1})

starts = []
for file in sorted(folder.iterdir()):
    events = list(EventFileLoader(str(file)).Load())
    same(f"version of {file.name}", events[0].file_version, "brain.Event:2")
    starts.append(events[1].step)
same("first steps of the files", starts, [0, at[0] + 1, at[0] + 1])
