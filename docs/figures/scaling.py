#!/usr/bin/env python3
"""Draws docs/figures/scaling.svg: the speed of N ranks by the model of docs/distributed.md, and measured points. Needs no packages.

    python3 docs/figures/scaling.py

The points are the lines RANKS,SPEED,LABEL of scaling.csv, with the speed relative to one rank.
"""

import csv
from html import escape
from math import log2
from pathlib import Path

# Seconds of a micro-batch of 128 images; bytes of gradients; bytes per second of readback, upload and addition; rounds of a step.
STEP, GRADIENTS, TRANSFER, ADDITION, ROUNDS = 40e-3, 7.8e6, 12e9, 5e9, 10
# Share of the micro-batch that is left when the first bucket of gradients is complete, and share of the gradients in the last bucket.
HIDING, LAST = 0.27, 0.15
# Name, bytes per second and seconds of latency between two ranks, largest number of ranks, colour (Okabe and Ito).
NETWORKS = [
    ("one machine", 10e9, 20e-6, 8, "#0072B2"),
    ("100 Gbit/s", 12.5e9, 50e-6, 64, "#009E73"),
    ("10 Gbit/s", 1.25e9, 100e-6, 64, "#D55E00"),
]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 400, 60, 150, 20, 50


def speed(ranks, bandwidth, latency):
    """Speed of `ranks` ranks relative to one that has nobody to communicate with."""
    if ranks == 1:
        return 1.0
    network = 2 * (ranks - 1) / ranks * GRADIENTS / bandwidth
    exchange = 2 * GRADIENTS / TRANSFER + network + GRADIENTS / ADDITION + ROUNDS * latency
    return ranks * STEP / (STEP + max(LAST * exchange, exchange - HIDING * STEP))


def main():
    with open(Path(__file__).with_suffix(".csv"), newline="") as file:
        points = [(float(ranks), float(factor), label) for ranks, factor, label in csv.reader(file)]
    ticks = [1, 2, 4, 8, 16, 32, 64]

    # Both axes are logarithmic, from 1 to 64.
    def along(value):
        return log2(value) / 6

    def x(ranks):
        return LEFT + along(ranks) * (WIDTH - LEFT - RIGHT)

    def y(factor):
        return HEIGHT - BOTTOM - along(factor) * (HEIGHT - TOP - BOTTOM)

    def text(x, y, words, anchor="start", colour="#333333"):
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'

    def line(points, colour, style=""):
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
        return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" {style}/>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for tick in ticks:
        parts.append(f'<path d="M{x(tick):.1f} {y(1):.1f}V{y(64):.1f}M{x(1):.1f} {y(tick):.1f}H{x(64):.1f}" stroke="#e5e5e5"/>')
        parts += [text(x(tick), HEIGHT - BOTTOM + 18, str(tick), "middle"), text(LEFT - 8, y(tick) + 4, str(tick), "end")]
    parts.append(text((x(1) + x(64)) / 2, HEIGHT - 10, "ranks", "middle"))
    parts.append(text(LEFT - 40, TOP - 6, "speed against one rank"))
    parts.append(line([(1, 1), (64, 64)], "#999999", 'stroke-dasharray="4 4"'))
    parts.append(text(x(64) + 8, y(64) + 4, "without communication", colour="#666666"))
    for number, (name, bandwidth, latency, most, colour) in enumerate(NETWORKS):
        curve = [(n, speed(n, bandwidth, latency)) for n in ticks if n <= most]
        parts.append(line(curve, colour))
        parts.append(text(x(64) + 8, y(64) + 24 + 16 * number, f"{name}: {curve[-1][1]:.1f} of {most}", colour=colour))
    for number, (ranks, factor, label) in enumerate(points):
        parts.append(f'<circle cx="{x(ranks):.1f}" cy="{y(factor):.1f}" r="4" fill="#CC79A7"/>')
        parts.append(text(x(ranks) + 8, y(factor) + 16 + 14 * number, label, colour="#A0527F"))
    path = Path(__file__).parent / "scaling.svg"
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")
    print(path)


if __name__ == "__main__":
    main()
