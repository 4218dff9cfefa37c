#!/usr/bin/env python3
"""Draws the figures of docs/vae.md.

    pip install matplotlib numpy
    python docs/figures/make_figures.py                # the drawings
    python docs/figures/make_figures.py --run runs/demo    # also copies the images of a run of `make demo`

Every curve is computed here from the formulas of the page; nothing is sketched by hand. The background is white and opaque, so that the
figures are legible in dark viewers too.
"""

import argparse
import shutil
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

# Colours that remain distinct for readers with colour-vision deficiencies (Okabe and Ito).
BLUE, ORANGE, GREEN, RED, PURPLE, GRAY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#666666"
HALF_LN_2PI = 0.5 * np.log(2 * np.pi)

plt.rcParams.update(
    {
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 11,
        "axes.labelsize": 10,
        "font.size": 10,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "mathtext.fontset": "dejavusans",
        # Equal input gives equal files.
        "svg.hashsalt": "vae-wgpu",
    }
)


def normal(x, mean, std):
    return np.exp(-0.5 * ((x - mean) / std) ** 2 - HALF_LN_2PI) / std


def kl(mean, std):
    """KL divergence of N(mean, std^2) from N(0, 1), in nats."""
    return 0.5 * (mean**2 + std**2 - 1 - 2 * np.log(std))


# ---- Boxes and arrows -----------------------------------------------------------------------------------------------


def canvas(width, height):
    figure, axes = plt.subplots(figsize=(width, height))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    figure.subplots_adjust(left=0, right=1, bottom=0, top=1)
    return figure, axes


def box(axes, x, y, text, colour, width=1.2, height=0.7):
    shape = FancyBboxPatch(
        (x - width / 2, y - height / 2), width, height, boxstyle="round,pad=0.02,rounding_size=0.1", fc=colour + "22", ec=colour, lw=1.5
    )
    axes.add_patch(shape)
    axes.text(x, y, text, ha="center", va="center")


def arrow(axes, start, end, colour="black", bend=0.0, style="-|>", dashed=False):
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle=style,
            mutation_scale=13,
            lw=1.4,
            color=colour,
            ls=(0, (4, 3)) if dashed else "-",
            connectionstyle=f"arc3,rad={bend}",
            shrinkA=0,
            shrinkB=0,
        )
    )


def model():
    figure, axes = canvas(9.6, 2.9)
    y = 1.75
    box(axes, 0.85, y, "image $x$\n32 x 32 x 3", GRAY, 1.25)
    box(axes, 2.65, y, "encoder", BLUE)
    box(axes, 4.35, y, r"$\mu,\ \log\sigma$" + "\n2 x 16", BLUE)
    box(axes, 6.0, y, "$z$\n16", PURPLE, 0.9)
    box(axes, 7.35, y, "decoder", ORANGE, 1.1)
    box(axes, 8.85, y, r"mean $\hat x$" + "\n32 x 32 x 3", ORANGE, 1.25)
    box(axes, 6.0, 0.45, r"noise $\epsilon \sim N(0, I)$", GRAY, 1.9, 0.5)
    for start, end in [(1.5, 2.03), (3.27, 3.73), (4.97, 5.53), (6.47, 6.78), (7.92, 8.2)]:
        arrow(axes, (start, y), (end, y))
    arrow(axes, (6.0, 0.72), (6.0, y - 0.38))
    axes.text(6.1, 1.02, r"$z = \mu + \sigma\,\epsilon$", va="center")
    axes.annotate("", (4.35, 2.16), (4.35, 2.5), arrowprops={"arrowstyle": "-", "color": RED})
    axes.text(4.35, 2.55, "KL: how far from the prior $N(0, I)$", ha="center", va="bottom", color=RED)
    # The reconstruction error compares the two ends.
    axes.plot([0.85, 0.85, 8.85, 8.85], [y - 0.4, 0.08, 0.08, y - 0.4], color=GREEN, lw=1.2)
    axes.text(2.6, 0.15, r"reconstruction: $-\log\ p(x\,|\,z)$, a squared error", ha="center", va="bottom", color=GREEN)
    return figure


def reparameterization():
    figure, axes = canvas(9.6, 3.7)
    for left, title in [(0.3, "A draw inside the graph"), (5.1, "The reparameterization trick")]:
        axes.text(left, 3.48, title, fontsize=11, va="center", fontweight="bold")
    y = 1.9
    # Left: z is a random node.
    box(axes, 0.85, y, r"$\mu,\ \sigma$", BLUE, 0.9)
    box(axes, 2.4, y, r"$z \sim N(\mu, \sigma^2)$", PURPLE, 1.5)
    box(axes, 3.95, y, "loss", ORANGE, 0.8)
    arrow(axes, (1.33, y), (1.61, y))
    arrow(axes, (3.19, y), (3.5, y))
    arrow(axes, (3.8, y - 0.42), (2.6, y - 0.42), RED, bend=-0.35, dashed=True)
    axes.text(3.2, 0.96, r"$\partial L/\partial z$", color=RED, ha="center", va="center")
    axes.text(1.45, 1.2, "?", color=RED, fontsize=20, ha="center", va="center", fontweight="bold")
    axes.text(2.4, 0.35, "A random draw has no derivative\nwith respect to its own parameters.", ha="center", va="center", color=GRAY)
    # Right: the randomness is an input.
    box(axes, 5.65, y, r"$\mu,\ \sigma$", BLUE, 0.9)
    box(axes, 7.3, y, r"$z = \mu + \sigma\,\epsilon$", PURPLE, 1.5)
    box(axes, 8.95, y, "loss", ORANGE, 0.8)
    box(axes, 7.3, 2.88, r"$\epsilon \sim N(0, 1)$", GRAY, 1.3, 0.45)
    arrow(axes, (7.3, 2.63), (7.3, y + 0.38))
    arrow(axes, (6.13, y), (6.51, y))
    arrow(axes, (8.09, y), (8.5, y))
    arrow(axes, (8.8, y - 0.42), (7.5, y - 0.42), RED, bend=-0.35, dashed=True)
    arrow(axes, (7.1, y - 0.42), (5.8, y - 0.42), RED, bend=-0.35, dashed=True)
    axes.text(8.15, 0.96, r"$\partial L/\partial z$", color=RED, ha="center", va="center")
    axes.text(6.45, 0.96, r"$\partial L/\partial\mu,\ \partial L/\partial\log\sigma$", color=RED, ha="center", va="center")
    axes.text(7.3, 0.5, r"$\partial L/\partial\mu = \partial L/\partial z$", ha="center", va="center")
    axes.text(7.3, 0.2, r"$\partial L/\partial\log\sigma = \partial L/\partial z \cdot \sigma\,\epsilon$", ha="center", va="center")
    axes.plot([4.75, 4.75], [0.15, 3.55], color="#cccccc", lw=1)
    return figure


# ---- Curves ---------------------------------------------------------------------------------------------------------


def bound():
    """A model with one latent dimension and one pixel, whose likelihood can be integrated numerically."""
    x, noise = 1.5, 0.6
    decoder = lambda z: z + 0.35 * z**2  # noqa: E731
    z = np.linspace(-5, 5, 20001)
    dz = z[1] - z[0]
    log_likelihood = -0.5 * ((x - decoder(z)) / noise) ** 2 - HALF_LN_2PI - np.log(noise)
    joint = normal(z, 0, 1) * np.exp(log_likelihood)
    evidence = joint.sum() * dz
    posterior = joint / evidence

    def elbo(mean, std):
        return (normal(z, mean, std) * log_likelihood).sum() * dz - kl(mean, std)

    means, stds = np.linspace(0.2, 1.6, 71), np.linspace(0.1, 1.2, 111)
    values = np.array([[elbo(m, s) for s in stds] for m in means])
    best = np.unravel_index(values.argmax(), values.shape)
    mean, std = means[best[0]], stds[best[1]]

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.6), layout="constrained")
    left.plot(z, normal(z, 0, 1), color=GRAY, label="prior $p(z)$")
    left.plot(z, posterior, color=BLUE, label=r"posterior $p(z\,|\,x)$, exact")
    left.plot(z, normal(z, mean, std), "--", color=ORANGE, label=r"$q(z\,|\,x)$, the best Gaussian")
    left.set(xlim=(-3, 3), ylim=(0, None), xlabel="latent value $z$", ylabel="density", title="One image, one latent dimension")
    left.legend(loc="upper left")
    curve = values[best[0]]
    right.axhline(np.log(evidence), color=BLUE, label=r"$\log\ p(x)$")
    right.plot(stds, curve, color=ORANGE, label="ELBO")
    right.fill_between(stds, curve, np.log(evidence), color=RED, alpha=0.15, lw=0, label=r"gap: KL$(q(z\,|\,x)\ \|\ p(z\,|\,x))$")
    right.plot([std], [curve.max()], "o", color=ORANGE)
    right.set(xlabel=r"standard deviation of $q(z\,|\,x)$", ylabel="nats", xlim=(0.1, 1.2), title="The bound is tight where $q$ fits")
    right.set_ylim(curve[stds <= 1.2].min(), np.log(evidence) + 0.35)
    right.legend(loc="lower left")
    return figure


def divergence():
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.7), layout="constrained")
    z = np.linspace(-4, 4, 801)
    left.plot(z, normal(z, 0, 1), color=GRAY, lw=2, label="prior $N(0, 1)$")
    for (mean, std), colour in zip([(0.0, 0.5), (1.5, 1.0), (1.5, 0.3)], [GREEN, BLUE, ORANGE]):
        left.plot(z, normal(z, mean, std), color=colour, label=rf"$\mu={mean:g},\ \sigma={std:g}$: {kl(mean, std):.2f} nats")
    left.set(xlabel="latent value $z$", ylabel="density", ylim=(0, None), xlim=(-3, 4), title="What a posterior costs")
    left.legend(loc="upper left", bbox_to_anchor=(-0.02, 1.0))
    mean, log_std = np.meshgrid(np.linspace(-3, 3, 301), np.linspace(-2, 1, 301))
    contours = right.contour(mean, log_std, kl(mean, np.exp(log_std)), [0.1, 0.5, 1, 2, 3, 4, 5], cmap="viridis_r", linewidths=1.3)
    right.clabel(contours, fontsize=8, fmt="%g")
    # The negative gradient: what the KL term alone does to mu and log sigma.
    m, s = np.meshgrid(np.linspace(-2.6, 2.6, 9), np.linspace(-1.8, 0.8, 8))
    u, v = -m, 1 - np.exp(2 * s)
    length = np.hypot(u, v)
    right.quiver(m, s, u / (length + 0.5), v / (length + 0.5), color=GRAY, width=0.004, scale=16)
    right.plot([0], [0], "o", color=RED, label="the prior: 0 nats")
    right.legend(loc="lower center", frameon=True, framealpha=1, edgecolor="white")
    right.set(xlabel=r"$\mu$", ylabel=r"$\log\sigma$", title="KL in nats; arrows: negative gradient")
    return figure


def sigma():
    figure, axes = plt.subplots(figsize=(7.6, 4.0), layout="constrained")
    mse = np.geomspace(1e-3, 0.5, 400)
    bits = lambda nats: nats / np.log(2) + np.log2(127.5)  # noqa: E731
    fixed, best = bits(HALF_LN_2PI + 0.5 * mse), bits(HALF_LN_2PI + 0.5 + 0.5 * np.log(mse))
    axes.semilogx(mse, fixed, color=ORANGE)
    axes.semilogx(mse, best, color=BLUE)
    axes.text(1.1e-3, 8.42, r"$\sigma_x = 1$, as trained: never below 8.32 bits", color=ORANGE)
    axes.text(1.25e-3, 4.75, r"$\sigma_x^2$ = mean squared error", color=BLUE, rotation=23.5, rotation_mode="anchor")
    axes.axhline(8, color=GRAY, ls="--", lw=1)
    axes.text(1.1e-3, 7.9, "8 bits: all 256 values equally likely", color=GRAY, va="top")
    point = 0.0817
    axes.axvline(point, color=GRAY, lw=0.6)
    for height, colour in [(np.interp(point, mse, fixed), ORANGE), (np.interp(point, mse, best), BLUE)]:
        axes.plot([point], [height], "o", color=colour)
        axes.annotate(f"{height:.2f}", (point, height), (6, 6 if colour == ORANGE else -13), textcoords="offset points", color=colour)
    axes.text(point * 0.94, 4.2, "CIFAR-10,\nafter three epochs", color=GRAY, ha="right")
    axes.set(xlabel="mean squared error, pixels from -1 to 1", ylabel="bits per dimension, reconstruction term", xlim=(1e-3, 0.5), ylim=(4, 9))
    return figure


def train_linear_vae(covariance, latent, steps=40_000, rate=0.02):
    """Gradient descent on the exact ELBO of a linear VAE with unit noise: mu = A x, x ~ N(W z, I). Returns the variance of each mu."""
    rng = np.random.default_rng(0)
    dims = len(covariance)
    decoder, encoder = 0.3 * rng.standard_normal((dims, latent)), 0.3 * rng.standard_normal((latent, dims))
    log_std = np.zeros(latent)
    for _ in range(steps):
        variance = np.exp(2 * log_std)
        gram = decoder.T @ decoder
        codes = encoder @ covariance
        d_decoder = decoder @ (codes @ encoder.T + np.diag(variance)) - codes.T
        d_encoder = gram @ codes - decoder.T @ covariance + codes
        d_log_std = variance * (np.diag(gram) + 1) - 1
        decoder, encoder, log_std = decoder - rate * d_decoder, encoder - rate * d_encoder, log_std - rate * d_log_std
    return np.diag(encoder @ covariance @ encoder.T)


def pca():
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10.4, 3.5), layout="constrained")
    rng = np.random.default_rng(3)

    points = rng.standard_normal((160, 2)) @ np.diag([1.5, 0.45]) @ np.array([[0.8, 0.6], [-0.6, 0.8]])
    direction = np.linalg.eigh(np.cov(points.T))[1][:, -1]
    projected = np.outer(points @ direction, direction)
    left.plot(*np.stack([points, projected]).transpose(2, 0, 1), color=GRAY, lw=0.5, alpha=0.5)
    left.plot(*points.T, ".", color=BLUE, ms=4, label="images")
    left.plot(*projected.T, ".", color=ORANGE, ms=4, label="reconstructions")
    left.set(xlabel="pixel 1", ylabel="pixel 2", aspect="equal", xlim=(-4, 4), ylim=(-3.4, 4.6), title="PCA, one component")
    left.legend(loc="upper left", markerscale=2)

    eigenvalues = np.array([8.0, 4.0, 2.5, 1.5, 0.7, 0.45, 0.3, 0.2])
    index = np.arange(1, 9)
    kept = eigenvalues > 1
    middle.bar(index[kept], eigenvalues[kept], color=BLUE, label="encoded")
    middle.bar(index[~kept], eigenvalues[~kept], color="#bbbbbb", label="left to the noise")
    middle.axhline(1, color=RED, ls="--", label=r"$\sigma_x^2 = 1$")
    middle.set(xlabel="principal direction $i$", ylabel=r"variance $\lambda_i$", xticks=index, title="Which directions pay")
    middle.legend()

    rotation = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    learned = np.sort(train_linear_vae(rotation @ np.diag(eigenvalues) @ rotation.T, 6))[::-1]
    theory = np.maximum(0, 1 - 1 / eigenvalues[:6])
    right.bar(index[:6], theory, color=BLUE, alpha=0.35, label=r"theory: $\max(0,\ 1 - \sigma_x^2/\lambda_i)$")
    right.plot(index[:6], learned, "o", color=ORANGE, label="linear VAE, trained")
    right.axhline(0.01, color=RED, ls="--", lw=1, label="active: above 0.01")
    right.set(xlabel="latent dimension, sorted", ylabel=r"variance of $\mu_i$ over the images", xticks=index[:6], ylim=(-0.03, 1.35))
    right.set_title("4 of 6 units are active")
    right.legend(loc="upper right")
    if np.abs(learned - theory).max() > 1e-3:
        raise SystemExit(f"the linear VAE has not converged: {learned} instead of {theory}")
    return figure


FIGURES = {
    "model": model,
    "bound": bound,
    "reparameterization": reparameterization,
    "divergence": divergence,
    "sigma": sigma,
    "pca": pca,
}
RUN_IMAGES = {name: f"demo_{name}" for name in ["reconstruction_history.png", "training_loss.png"]}


def main():
    parser = argparse.ArgumentParser(description="Draws the figures of docs/vae.md.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these: {', '.join(FIGURES)}")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, metavar="DIR", help="default: beside this script")
    parser.add_argument("--format", default="svg", choices=["svg", "png"])
    parser.add_argument("--run", type=Path, metavar="RUN", help="also copy the images of this run folder of `make demo`")
    options = parser.parse_args()
    unknown = set(options.names) - set(FIGURES)
    if unknown:
        parser.error(f"unknown figure: {', '.join(sorted(unknown))}")
    for name in options.names or FIGURES:
        path = options.out / f"{name}.{options.format}"
        figure = FIGURES[name]()
        figure.savefig(path, dpi=110, metadata={"Date": None} if options.format == "svg" else None)
        plt.close(figure)
        print(path)
    if options.run:
        for source, target in RUN_IMAGES.items():
            print(shutil.copyfile(options.run / source, options.out / target))


if __name__ == "__main__":
    main()
