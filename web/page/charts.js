// @ts-check
/** The chart of a run's curves. */

// @ts-ignore: the build copies uPlot here.
import uPlot from './vendor/uPlot.esm.js';
import { byId, setText } from './dom.js';
import { count, short } from './format.js';
import { Series, axisRange } from './series.js';

/** @typedef {import('./series.js').Curve} Curve */

const NAMES = { total: 'Loss', recon: 'Reconstruction', kl: 'KL', mse: 'Squared error', gradNorm: 'Gradient norm' };
const HEIGHT = 260;
/** Milliseconds between two drawings. */
const PAUSE = 200;

/** A chart of one curve, with radio buttons to choose it. */
export class Chart {
  #body = byId('chart');
  /** @type {any} */
  #plot = null;
  #series = new Series();
  /** @type {Curve} */
  #curve = 'total';
  #waiting = 0;

  constructor() {
    byId('chart-choice').addEventListener('change', (event) => {
      this.#curve = /** @type {Curve} */ (/** @type {HTMLInputElement} */ (event.target).value);
      this.#build();
      this.describe();
    });
    new ResizeObserver(() => this.#plot?.setSize({ width: this.#body.clientWidth, height: HEIGHT })).observe(this.#body);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.#build());
    this.#build();
  }

  /** Removes all measurements. */
  clear() {
    this.#series = new Series();
    this.#draw();
    this.describe();
  }

  /** Adds the measurements of a step. @param {number} step @param {Record<Curve, number>} values */
  push(step, values) {
    this.#series.push(step, values);
    this.#waiting ||= window.setTimeout(() => this.#draw(), PAUSE);
  }

  /** Adds the measurements on held-out images after an epoch. @param {{step: number, total: number, mse: number}} row */
  pushHeld(row) {
    this.#series.held.push(row);
    this.#draw();
    this.describe();
  }

  /** Describes the curve in words, for those who do not see it. */
  describe() {
    const [steps, , mean] = this.#series.chart(this.#curve);
    const name = `${NAMES[this.#curve]} by step`;
    const last = steps.length - 1;
    const text = last < 0 ? 'no steps yet' : `from ${short(mean[0] ?? NaN)} at step ${count(steps[0])} to ${short(mean[last] ?? NaN)} at step ${count(steps[last])}`;
    this.#body.setAttribute('aria-label', `${name}: ${text}`);
  }

  #draw() {
    clearTimeout(this.#waiting);
    this.#waiting = 0;
    this.#plot.setData(this.#series.chart(this.#curve));
  }

  #build() {
    this.#plot?.destroy();
    const colours = getComputedStyle(document.documentElement);
    const colour = (/** @type {string} */ name) => colours.getPropertyValue(name).trim();
    const font = `12px ${getComputedStyle(document.body).fontFamily}`;
    const axis = { stroke: colour('--muted'), font, grid: { stroke: colour('--line'), width: 1 }, ticks: { show: false } };
    const range = (/** @type {any} */ plot) => axisRange(plot.data.slice(1));
    const line = (/** @type {string} */ name, /** @type {number} */ width) => ({ stroke: colour(name), width, points: { show: false } });
    const held = { stroke: colour('--val'), width: 2, spanGaps: true, points: { show: true, size: 6, fill: colour('--val') } };
    const options = {
      width: this.#body.clientWidth || 600,
      height: HEIGHT,
      legend: { show: false },
      cursor: { y: false, points: { show: false }, drag: { x: false, y: false } },
      scales: { x: { time: false, range: (/** @type {any} */ _, /** @type {number} */ low, /** @type {number} */ high) => [Math.min(low ?? 0, 1), Math.max(high ?? 10, 10)] }, y: { range } },
      axes: [
        { ...axis, size: 30, values: (/** @type {any} */ _, /** @type {number[]} */ splits) => splits.map((split) => (Number.isInteger(split) ? count(split) : '')) },
        { ...axis, size: 56 },
      ],
      series: [{}, line('--step', 1), line('--train', 2), held],
      hooks: { setCursor: [(/** @type {any} */ plot) => this.#readOut(plot.cursor.idx)] },
    };
    this.#plot = new uPlot(options, this.#series.chart(this.#curve), this.#body);
    byId('key-val').hidden = this.#curve !== 'total' && this.#curve !== 'mse';
  }

  /** Shows the values under the pointer. @param {number | null | undefined} index */
  #readOut(index) {
    const [steps, raw, mean] = this.#plot?.data ?? [[]];
    const known = typeof index === 'number' && index < steps.length;
    setText(byId('chart-readout'), known ? `step ${count(steps[index])}: ${short(raw[index])}, average ${short(mean[index])}` : '');
  }
}
