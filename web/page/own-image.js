// @ts-check
/** An image of the visitor, encoded and drawn again. */

import { byId, setText, takeFiles } from './dom.js';
import { fixed } from './format.js';
import { divergence, squaredError } from './latent.js';
import { drawGrid } from './mosaic.js';
import { readPicture } from './pictures.js';

/** The tool. */
export class OwnImage {
  #context;
  /** The image that was chosen last. @type {File | null} */
  #file = null;
  /** @type {ArrayLike<number>} */
  #mean = [];

  /** @param {import('./explore.js').Context} context @param {(mean: ArrayLike<number>) => void} onMove called to move its latent vector */
  constructor(context, onMove) {
    this.#context = context;
    const input = /** @type {HTMLInputElement} */ (byId('own-file'));
    input.addEventListener('change', () => {
      const [file] = takeFiles(input);
      if (file) void this.use(file);
    });
    byId('own-dials').addEventListener('click', () => onMove(this.#mean));
  }

  /** Reads the model again. */
  async refresh() {
    if (this.#file) await this.#encode(this.#file);
  }

  /** Encodes an image. @param {File} file */
  use(file) {
    return this.#context.attempt(() => this.#encode(file));
  }

  /** @param {File} file */
  async #encode(file) {
    const model = this.#context.model();
    if (!model) return;
    const [channels, height, width] = model.imageSize;
    const rgba = await readPicture(file, width).catch(() => {
      throw new Error(`The browser cannot read ${file.name}. Choose a PNG, JPEG or WebP file.`);
    });
    if (channels === 1) makeGrey(rgba);
    const { mean, std, picture, reconstruction } = await this.#context.engine.request('encode', { rgba, width, height });
    this.#file = file;
    this.#mean = mean;
    drawGrid(/** @type {HTMLCanvasElement} */ (byId('own-original')), picture, { label: 'Your image as the model sees it' });
    drawGrid(/** @type {HTMLCanvasElement} */ (byId('own-reconstruction')), reconstruction, { label: 'Your image, encoded and drawn again' });
    byId('own-result').hidden = false;
    const nats = divergence(mean, std);
    setText(byId('own-numbers'), `Squared error ${fixed(squaredError(picture, reconstruction), 4)}. The latent vector carries ${fixed(nats, 1)} nats, or ${fixed(nats / Math.LN2, 0)} bits.`);
  }
}

/** Replaces colours by their luminance (ITU-R BT.709). @param {Uint8ClampedArray} rgba */
function makeGrey(rgba) {
  for (let i = 0; i < rgba.length; i += 4) {
    rgba[i] = rgba[i + 1] = rgba[i + 2] = 0.2126 * rgba[i] + 0.7152 * rgba[i + 1] + 0.0722 * rgba[i + 2];
  }
}
