// @ts-check
/** Images between two held-out images. */

import { byId, latestOnly, setText } from './dom.js';
import { slerp } from './latent.js';
import { drawGrid } from './mosaic.js';

/** Images in the strip. */
const STEPS = 9;

/** @typedef {{index: number, mean: number[], picture: import('./client.js').Pictures}} End */

/** The tool. */
export class Path {
  #context;
  /** @type {Record<'a' | 'b', End | null>} */
  #ends = { a: null, b: null };
  #slider = /** @type {HTMLInputElement} */ (byId('path-t'));

  /** @param {import('./explore.js').Context} context */
  constructor(context) {
    this.#context = context;
    byId('path-a-next').addEventListener('click', () => context.attempt(() => this.#next('a')));
    byId('path-b-next').addEventListener('click', () => context.attempt(() => this.#next('b')));
    this.#slider.addEventListener('input', () => this.#middle());
  }

  /** Reads the model again. */
  async refresh() {
    const held = this.#context.held();
    byId('path-empty').hidden = held >= 2;
    byId('path-tool').hidden = held < 2;
    if (held < 2) return;
    const [a, b] = [this.#ends.a?.index ?? 0, this.#ends.b?.index ?? 1];
    await this.#choose('a', a % held);
    await this.#choose('b', b % held);
    await this.#strip();
  }

  /** @param {'a' | 'b'} end */
  async #next(end) {
    const other = this.#ends[end === 'a' ? 'b' : 'a']?.index;
    const held = this.#context.held();
    let index = ((this.#ends[end]?.index ?? 0) + 1) % held;
    if (index === other) index = (index + 1) % held;
    await this.#choose(end, index);
    await this.#strip();
  }

  /** @param {'a' | 'b'} end @param {number} index */
  async #choose(end, index) {
    const { mean, picture } = await this.#context.engine.request('encode', { index });
    this.#ends[end] = { index, mean, picture };
    drawGrid(/** @type {HTMLCanvasElement} */ (byId(`path-${end}`)), picture, { label: `Held-out image ${index + 1}` });
    setText(byId(`path-${end}-name`), `Held-out image ${index + 1}`);
  }

  async #strip() {
    const between = Array.from({ length: STEPS }, (_, i) => this.#at(i / (STEPS - 1)));
    const latent = between[0].length;
    const z = new Float32Array(STEPS * latent);
    for (const [i, vector] of between.entries()) z.set(vector, i * latent);
    const { pictures } = await this.#context.engine.request('decode', { z });
    drawGrid(/** @type {HTMLCanvasElement} */ (byId('path-strip')), pictures, { label: 'Nine images from the first to the second', columns: STEPS });
    await this.#middle();
  }

  #middle = latestOnly(() => this.#context.attempt(async () => {
    const percent = this.#slider.valueAsNumber;
    setText(byId('path-percent'), `${percent} %`);
    const { pictures } = await this.#context.engine.request('decode', { z: this.#at(percent / 100) });
    drawGrid(/** @type {HTMLCanvasElement} */ (byId('path-middle')), pictures, { label: `Image at ${percent} % of the way` });
  }));

  /** @param {number} t */
  #at(t) {
    return slerp(this.#ends.a?.mean ?? [], this.#ends.b?.mean ?? [], t);
  }
}
