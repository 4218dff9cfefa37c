// @ts-check
/** The measurements of a run in bounded memory. */

/** Measurements of a step. */
export const CURVES = /** @type {const} */ (['total', 'recon', 'kl', 'mse', 'gradNorm']);
/** @typedef {typeof CURVES[number]} Curve */

/** Rows after which neighbours are merged. */
const CAPACITY = 4096;

/** The curves of a run by step. A long run is thinned: neighbouring rows become their mean. */
export class Series {
  /** Steps per row. */
  #stride = 1;
  /** Steps in the last row. */
  #last = 0;
  /** @type {number[]} */
  steps = [];
  /** @type {Record<Curve, number[]>} */
  rows = { total: [], recon: [], kl: [], mse: [], gradNorm: [] };
  /** Measurements on held-out images. @type {{step: number, total: number, mse: number}[]} */
  held = [];

  /** Adds the measurements of a step. @param {number} step @param {Record<Curve, number>} values */
  push(step, values) {
    if (this.#last === 0 || this.#last === this.#stride) {
      if (this.steps.length === CAPACITY) this.#thin();
      this.steps.push(step);
      for (const curve of CURVES) this.rows[curve].push(values[curve]);
      this.#last = 1;
      return;
    }
    const at = this.steps.length - 1;
    this.#last += 1;
    this.steps[at] = step;
    for (const curve of CURVES) this.rows[curve][at] += (values[curve] - this.rows[curve][at]) / this.#last;
  }

  #thin() {
    const half = (/** @type {number[]} */ list, /** @type {(a: number, b: number) => number} */ merge) =>
      Array.from({ length: list.length / 2 }, (_, i) => merge(list[2 * i], list[2 * i + 1]));
    this.steps = half(this.steps, (_, b) => b);
    for (const curve of CURVES) this.rows[curve] = half(this.rows[curve], (a, b) => (a + b) / 2);
    this.#stride *= 2;
  }

  /**
   * Returns what a chart of a curve shows: steps, values, their moving average, and the values on held-out images.
   * @param {Curve} curve
   * @returns {[number[], (number | null)[], (number | null)[], (number | null)[]]}
   */
  chart(curve) {
    const raw = this.rows[curve].map((value) => (Number.isFinite(value) ? value : null));
    const held = new Map(curve === 'total' || curve === 'mse' ? this.held.map((row) => [row.step, row[curve]]) : []);
    // An epoch ends between two rows of a thinned run: its value belongs to the first row that reaches it.
    const waiting = [...held.keys()].sort((a, b) => a - b);
    const values = this.steps.map((step) => {
      let value = null;
      while (waiting.length > 0 && waiting[0] <= step) value = held.get(/** @type {number} */ (waiting.shift())) ?? null;
      return value;
    });
    return [this.steps, raw, average(raw), values];
  }
}

/** Returns the exponential moving average over a fortieth of the values, and over fewer where the curve starts. @param {(number | null)[]} values */
export function average(values) {
  /** @type {number | null} */
  let mean = null;
  return values.map((value, i) => {
    const share = 1 / Math.max(1, Math.min(values.length / 40, i / 6));
    if (value !== null) mean = mean === null ? value : mean + share * (value - mean);
    return mean;
  });
}

/**
 * Returns the range of an axis that shows all but the highest 2 % of the values, so that the first steps do not flatten the rest.
 * @param {(number | null)[][]} lists
 * @returns {[number, number]}
 */
export function axisRange(lists) {
  const sorted = /** @type {number[]} */ (lists.flat().filter((value) => value !== null)).sort((a, b) => a - b);
  if (sorted.length === 0) return [0, 1];
  const low = sorted[0];
  const high = sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * 0.98))];
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  return [low - room, high + room];
}
