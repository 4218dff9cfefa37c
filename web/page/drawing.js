// @ts-check
/** New images from random latent vectors. */

import { byId, latestOnly, setText } from './dom.js';
import { drawGrid } from './mosaic.js';

const COUNT = 36;

/** The tool. */
export class Drawing {
  #context;
  #seed = 1;
  #temperature = /** @type {HTMLInputElement} */ (byId('temperature'));

  /** @param {import('./explore.js').Context} context */
  constructor(context) {
    this.#context = context;
    // The seed stays while the temperature changes, so that its effect shows.
    this.#temperature.addEventListener('input', () => this.#draw());
    byId('draw').addEventListener('click', () => {
      this.#seed += 1;
      void this.#draw();
    });
  }

  /** Reads the model again. */
  refresh() {
    return this.#draw();
  }

  #draw = latestOnly(() => this.#context.attempt(async () => {
    const temperature = this.#temperature.valueAsNumber;
    setText(byId('temperature-value'), temperature.toFixed(2));
    const { pictures } = await this.#context.engine.request('sample', { count: COUNT, temperature, seed: this.#seed });
    drawGrid(/** @type {HTMLCanvasElement} */ (byId('draw-canvas')), pictures, { label: `${pictures.count} samples at temperature ${temperature}` });
  }));
}
