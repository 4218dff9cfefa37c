#!/usr/bin/env python3
"""Loads the weights of a vae-wgpu run into a PyTorch module and draws samples from it.

    pip install torch safetensors
    python examples/load_in_pytorch.py runs/demo --out samples.png

The argument is a run folder or a `model.safetensors`. The sizes of the model come from the metadata of the file.
docs/pytorch.md describes names, shapes and conventions. The module below is complete: copy it.
"""

import argparse
import json
import struct
import sys
import zlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import SimpleNamespace

try:
    import torch
    import torch.nn.functional as F
    from torch import nn
except ImportError:  # `--names` works without PyTorch.
    torch, nn = None, SimpleNamespace(Module=object)


@dataclass(frozen=True)
class Config:
    """Sizes of the model: the fields of `config` in the metadata of `model.safetensors`."""

    channels: int = 32
    blocks: int = 4
    groups: int = 3
    latent_dim: int = 64
    norm: str = "batch"
    image_size: int = 32
    image_channels: int = 3
    head: str = "pool"  # Files with the head `pool` do not name it,
    likelihood: str = "unit"  # files with the unit likelihood do not name that,
    classes: int = 0  # and files of models without classes not their number.

    @staticmethod
    def from_json(text):
        values = json.loads(text)
        known = {field.name for field in fields(Config)}
        if not isinstance(values, dict) or set(values) | {"head", "likelihood", "classes"} != known:
            raise ValueError(f"expected an object with exactly the fields {', '.join(sorted(known))}")
        choices_of = {"norm": ("batch", "position"), "head": ("pool", "flatten"), "likelihood": ("unit", "optimal")}
        for field, choices in choices_of.items():
            if values.get(field, choices[0]) not in choices:
                raise ValueError(f"{field} is {values[field]!r}; expected {' or '.join(choices)}")
        return Config(**values)


def encoded(config):
    """Returns the number of values that the encoder's head gives its linear layer."""
    size = config.image_size >> config.groups if config.head == "flatten" else 1
    return (config.channels << config.groups) * size * size


# ---- The module -----------------------------------------------------------------------------------------------------


class PositionNorm(nn.Module):
    """Layer normalization over the channels of each position."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        y = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, eps=1e-5)
        return y.permute(0, 3, 1, 2)


def norm_layer(kind, channels):
    return nn.BatchNorm2d(channels, eps=1e-5, momentum=0.1) if kind == "batch" else PositionNorm(channels)


class Block(nn.Module):
    """A pre-activation bottleneck block. `scale` is "same", "down" (half the resolution) or "up" (twice)."""

    def __init__(self, norm, channels, out, scale):
        super().__init__()
        middle, stride = channels // 2, 2 if scale == "down" else 1
        self.scale = scale
        self.norm1 = norm_layer(norm, channels)
        self.conv1 = nn.Conv2d(channels, middle, 1)
        self.norm2 = norm_layer(norm, middle)
        if scale == "up":
            self.conv2 = nn.ConvTranspose2d(middle, middle, 4, stride=2, padding=1)
        else:
            self.conv2 = nn.Conv2d(middle, middle, 3, stride=stride, padding=1)
        self.norm3 = norm_layer(norm, middle)
        self.conv3 = nn.Conv2d(middle, out, 1)
        if scale != "same":
            self.skip_norm = norm_layer(norm, channels)
            self.skip_conv = nn.Conv2d(channels, out, 1, stride=stride)

    def forward(self, x):
        y = self.conv1(F.relu(self.norm1(x)))
        y = self.conv2(F.relu(self.norm2(y)))
        y = self.conv3(F.relu(self.norm3(y)))
        if self.scale == "same":
            return y + x
        skip = self.skip_conv(F.relu(self.skip_norm(x)))
        if self.scale == "up":
            skip = F.interpolate(skip, scale_factor=2, mode="nearest")
        return y + skip


class Group(nn.Module):
    """Blocks of one resolution; the first changes resolution and channels."""

    def __init__(self, config, channels, out, scale):
        super().__init__()
        first = Block(config.norm, channels, out, scale)
        rest = [Block(config.norm, out, out, "same") for _ in range(config.blocks - 1)]
        self.blocks = nn.ModuleList([first, *rest])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def add_label(half, x, classes):
    """Adds the layer `label` of the one-hot `classes`, if the model is conditional."""
    if not hasattr(half, "label"):
        return x
    if classes is None:
        raise ValueError("the model is conditional: pass the class of each image, a tensor of integers")
    return x + half.label(F.one_hot(classes, half.label.in_features).float())


class Encoder(nn.Module):
    """Images to mean and log standard deviation of the latent Gaussian."""

    def __init__(self, config):
        super().__init__()
        channels = config.channels
        self.stem = nn.Conv2d(config.image_channels, channels, 3, padding=1)
        self.groups = nn.ModuleList()
        for _ in range(config.groups):
            self.groups.append(Group(config, channels, 2 * channels, "down"))
            channels *= 2
        self.norm = norm_layer(config.norm, channels)
        self.flattens = config.head == "flatten"
        self.fc = nn.Linear(encoded(config), 2 * config.latent_dim)
        if config.classes:
            self.label = nn.Linear(config.classes, 2 * config.latent_dim)

    def forward(self, x, classes=None):
        x = self.stem(x)
        for group in self.groups:
            x = group(x)
        x = F.relu(self.norm(x))
        x = x.flatten(1) if self.flattens else x.mean(dim=(2, 3))
        return add_label(self, self.fc(x), classes).chunk(2, dim=1)


class Decoder(nn.Module):
    """Latent values to the mean image."""

    def __init__(self, config):
        super().__init__()
        channels, size = config.channels << config.groups, config.image_size >> config.groups
        self.shape = (channels, size, size)
        self.fc = nn.Linear(config.latent_dim, channels * size * size)
        if config.classes:
            self.label = nn.Linear(config.classes, channels * size * size)
        self.groups = nn.ModuleList()
        for _ in range(config.groups):
            self.groups.append(Group(config, channels, channels // 2, "up"))
            channels //= 2
        self.norm = norm_layer(config.norm, channels)
        self.out = nn.Conv2d(channels, config.image_channels, 3, padding=1)

    def forward(self, z, classes=None):
        x = add_label(self, self.fc(z), classes).unflatten(1, self.shape)
        for group in self.groups:
            x = group(x)
        return self.out(F.relu(self.norm(x)))


class Loss(nn.Module):
    """Holds the variance of a pixel around its decoded value, which only the likelihood of images depends on."""

    def __init__(self):
        super().__init__()
        self.register_buffer("variance", torch.ones(1))

    def negative_log_likelihood(self, x, mean):
        """In nats per dimension."""
        return 0.5 * ((2 * torch.pi * self.variance).log() + (x - mean).square().mean() / self.variance)


class VAE(nn.Module):
    """The model that vae-wgpu trains. Images are `[n, c, h, w]`, from -1 to 1: `bytes / 127.5 - 1`. A conditional model also takes
    the class of each."""

    def __init__(self, config):
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        if config.likelihood == "optimal":
            self.loss = Loss()

    def forward(self, x, classes=None):
        mu, log_std = self.encoder(x, classes)
        z = mu + log_std.exp() * torch.randn_like(mu)
        return self.decoder(z, classes), mu, log_std


# ---- Names and shapes, without PyTorch ------------------------------------------------------------------------------


def names_and_shapes(config):
    """Returns the shape of each tensor in `model.safetensors` by its name."""
    tensors = {}

    def layer(name, weight, bias):
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = weight, [bias]

    def norm(name, channels):
        layer(name, [channels], channels)
        if config.norm == "batch":
            tensors[f"{name}.running_mean"] = tensors[f"{name}.running_var"] = [channels]

    def group(name, channels, out, scale):
        for i in range(config.blocks):
            block, middle, kernel = f"{name}.blocks.{i}", channels // 2, 4 if (scale, i) == ("up", 0) else 3
            norm(f"{block}.norm1", channels)
            layer(f"{block}.conv1", [middle, channels, 1, 1], middle)
            norm(f"{block}.norm2", middle)
            layer(f"{block}.conv2", [middle, middle, kernel, kernel], middle)
            norm(f"{block}.norm3", middle)
            layer(f"{block}.conv3", [out, middle, 1, 1], out)
            if i == 0:
                norm(f"{block}.skip_norm", channels)
                layer(f"{block}.skip_conv", [out, channels, 1, 1], out)
            channels = out

    c, widest, size = config.channels, config.channels << config.groups, config.image_size >> config.groups
    layer("encoder.stem", [c, config.image_channels, 3, 3], c)
    layer("encoder.fc", [2 * config.latent_dim, encoded(config)], 2 * config.latent_dim)
    layer("decoder.fc", [widest * size * size, config.latent_dim], widest * size * size)
    layer("decoder.out", [config.image_channels, c, 3, 3], config.image_channels)
    if config.classes:
        layer("encoder.label", [2 * config.latent_dim, config.classes], 2 * config.latent_dim)
        layer("decoder.label", [widest * size * size, config.classes], widest * size * size)
    if config.likelihood == "optimal":
        tensors["loss.variance"] = [1]
    norm("encoder.norm", widest)
    norm("decoder.norm", c)
    for g in range(config.groups):
        group(f"encoder.groups.{g}", c << g, c << (g + 1), "down")
        group(f"decoder.groups.{g}", widest >> g, widest >> (g + 1), "up")
    return tensors


def self_check():
    """Compares `names_and_shapes` with the module, for sizes of every kind."""
    configs = [
        Config(),
        Config(likelihood="optimal", classes=10),
        Config(norm="position"),
        Config(head="flatten"),
        Config(channels=2, blocks=1, groups=1, latent_dim=1, image_size=2, image_channels=1),
        Config(channels=6, blocks=3, groups=4, latent_dim=5, norm="position", image_size=48, image_channels=4),
    ]
    for config in configs:
        module = {name: list(tensor.shape) for name, tensor in tensors_of(VAE(config)).items()}
        if module != names_and_shapes(config):
            different = sorted(module.items() ^ names_and_shapes(config).items(), key=str)
            raise SystemExit(f"error: names or shapes differ for {config}: {different}")
    print(f"{len(configs)} configurations: names and shapes are those of the module")


# ---- Files ----------------------------------------------------------------------------------------------------------


def load(path):
    """Returns the model of a run folder or a `model.safetensors`, in evaluation mode, and its sizes."""
    from safetensors import safe_open

    path = Path(path)
    if path.is_dir():
        path /= "model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        state = {name: file.get_tensor(name) for name in file.keys()}
    if "config" not in metadata:
        hint = "; use the model.safetensors beside it" if "checkpoint" in metadata else ""
        raise ValueError(f"{path} has no `config` in its metadata{hint}")
    config = Config.from_json(metadata["config"])
    model = VAE(config)
    model.load_state_dict(state, strict=True)
    return model.eval(), config


def load_prior(path):
    """Returns the mixture of Gaussians that was fitted to a model, or None. `path` is that of the model."""
    from safetensors.torch import load_file

    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    path = path.with_name("prior.safetensors" if path.stem == "model" else f"{path.stem}.prior.safetensors")
    return load_file(path) if path.exists() else None


def sample_latents(config, count, generator, temperature=1.0, prior=None, classes=None):
    """Draws `[count, latent_dim]` from the fitted prior, or without one from N(0, I); of these classes, for a conditional model."""
    noise = temperature * torch.randn(count, config.latent_dim, generator=generator)
    if prior is None:
        return noise
    weights = prior["mixture.weights"].expand(count, -1)
    if classes is not None and "mixture.classes" in prior:
        own = prior["mixture.classes"] == classes.unsqueeze(1)
        # A class without Gaussians of its own uses all.
        weights = torch.where(own | ~own.any(dim=1, keepdim=True), weights, 0)
    component = torch.multinomial(weights, 1, generator=generator).squeeze(1)
    return prior["mixture.means"][component] + torch.einsum("nij,nj->ni", prior["mixture.factors"][component], noise)


def tensors_of(model):
    """Returns the state dict without `num_batches_tracked`, which vae-wgpu neither writes nor reads."""
    return {name: t for name, t in model.state_dict().items() if not name.endswith(".num_batches_tracked")}


def save(model, config, path):
    """Writes weights that `vae-wgpu sample` and `vae-wgpu train --init` read."""
    from safetensors.torch import save_file

    tensors = {name: tensor.float().cpu().contiguous() for name, tensor in tensors_of(model).items()}
    left_out = [("likelihood", "unit"), ("classes", 0)]
    sizes = {field: value for field, value in asdict(config).items() if (field, value) not in left_out}
    save_file(tensors, path, metadata={"format": "pt", "config": json.dumps(sizes)})


def tensor_from(path, name):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)


def write_png(path, images, columns=7, scale=3, gap=2):
    """Writes `[n, c, h, w]` images from -1 to 1 as one grid; one channel is gray, three are RGB."""
    n, c, h, w = images.shape
    if c not in (1, 3):
        raise ValueError(f"cannot draw images of {c} channels; expected 1 or 3")
    images = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).expand(n, 3, h, w)
    images = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3).permute(0, 2, 3, 1)
    h, w, columns = h * scale, w * scale, min(columns, n)
    rows = -(-n // columns)
    grid = torch.full((rows * (h + gap) + gap, columns * (w + gap) + gap, 3), 255, dtype=torch.uint8)
    for i, image in enumerate(images):
        y, x = gap + i // columns * (h + gap), gap + i % columns * (w + gap)
        grid[y : y + h, x : x + w] = image

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    # Each row of a PNG starts with the number of its filter: 0, none.
    pixels = b"".join(b"\0" + bytes(row.flatten().tolist()) for row in grid)
    header = struct.pack(">IIBBBBB", grid.shape[1], grid.shape[0], 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")
    Path(path).write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


# ---- The command ----------------------------------------------------------------------------------------------------


def parse(arguments):
    parser = argparse.ArgumentParser(description="Samples from a vae-wgpu model with PyTorch.")
    parser.add_argument("model", nargs="?", metavar="RUN|FILE", help="run folder or model.safetensors")
    parser.add_argument("-o", "--out", default="samples.png", metavar="FILE", help="PNG to write (default: %(default)s)")
    parser.add_argument("-n", "--count", type=int, default=49, help="number of samples (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of PyTorch's noise (default: %(default)s)")
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="factor of the latent standard deviation (default: %(default)s)"
    )
    parser.add_argument(
        "--prior", choices=["mixture", "normal"], help="distribution of z (default: mixture if prior.safetensors is there)"
    )
    parser.add_argument(
        "--latents", metavar="FILE", help="decode the tensor `mu` of this output of `vae-wgpu encode` instead of noise"
    )
    parser.add_argument(
        "--compare",
        metavar="FILE",
        help="print the largest difference from the images in FILE, an output of `vae-wgpu reconstruct --raw` "
        "(.safetensors) for the same images as --latents",
    )
    parser.add_argument(
        "--limit", type=float, default=1e-4, help="largest difference that --compare accepts (default: %(default)s)"
    )
    parser.add_argument("--save", metavar="FILE", help="also write the weights back to a safetensors file")
    parser.add_argument(
        "--names", metavar="JSON", help="print name and shape of each tensor of a model with these sizes and exit; needs no PyTorch"
    )
    parser.add_argument("--self-check", action="store_true", help="compare --names with the module and exit")
    options = parser.parse_args(arguments)
    if options.model is None and options.names is None and not options.self_check:
        parser.error("RUN|FILE is missing")
    if options.count < 1:
        parser.error("--count must be at least 1")
    if options.compare and not options.latents:
        parser.error("--compare needs --latents")
    return options


def run(options):
    if options.names is not None:
        for name, shape in sorted(names_and_shapes(Config.from_json(options.names)).items()):
            print(name, shape)
        return
    if torch is None:
        raise ModuleNotFoundError("PyTorch is not installed; run `pip install torch safetensors`")
    if options.self_check:
        self_check()
        return

    model, config = load(options.model)
    classes = None
    if config.classes:
        # Equal numbers of all classes, in order, unless a file names them.
        classes = torch.arange(options.count) * config.classes // options.count
    if options.latents:
        z = tensor_from(options.latents, "mu")[: options.count]
        if config.classes:
            classes = tensor_from(options.latents, "label")[: options.count]
    else:
        prior = None if options.prior == "normal" else load_prior(options.model)
        if prior is None and options.prior == "mixture":
            raise ValueError("there is no prior.safetensors beside the model; write it with `vae-wgpu fit-prior`")
        generator = torch.Generator().manual_seed(options.seed)
        z = sample_latents(config, options.count, generator, options.temperature, prior, classes)
    with torch.no_grad():
        images = model.decoder(z, classes)
    write_png(options.out, images)
    print(f"{len(images)} images: {options.out}")
    if options.compare:
        other = tensor_from(options.compare, "reconstructions")[: len(images)]
        difference = (images - other).abs().max().item()
        print(f"largest difference from {options.compare}: {difference:.3e}")
        if not difference <= options.limit:
            raise ValueError(f"the difference is larger than {options.limit:g}")
    if options.save:
        save(model, config, options.save)
        print(f"weights: {options.save}")


def main():
    options = parse(sys.argv[1:])
    try:
        run(options)
    except Exception as error:  # One line instead of a traceback.
        sys.exit(f"error: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
