// @ts-check
/** The images to learn from: built-in shapes, the visitor's own, or CIFAR-10. */

import { byId, element, setText, showText, takeFiles } from './dom.js';
import { asEngineError } from './client.js';
import { counted, imageSize } from './format.js';
import { drawGrid } from './mosaic.js';
import { MOST_IMAGES, kindOf, readPictures } from './pictures.js';

/** Images in the preview. */
const SHOWN = 32;
/** Fewest images of a data set: some are held out. */
const FEWEST = 16;
/** Largest file that is read as CIFAR-10; its archive has 162 MiB, all its files together 176 MiB. */
const LARGEST = 256 * 1024 * 1024;
/** Broken files that are named. */
const NAMED = 3;

/** The section where images are chosen. */
export class DataSection {
  #session;
  /** The visitor's files, to read them again at another size. @type {File[]} */
  #files = [];
  /** @type {AbortController | null} */
  #reading = null;

  /** @param {import('./session.js').Session} session */
  constructor(session) {
    this.#session = session;
    byId('use-shapes').addEventListener('click', () => this.useShapes());
    for (const id of ['pick-images', 'pick-folder']) {
      const input = /** @type {HTMLInputElement} */ (byId(id));
      input.addEventListener('change', () => this.usePictures(takeFiles(input)));
    }
    const cifar = /** @type {HTMLInputElement} */ (byId('pick-cifar'));
    cifar.addEventListener('change', () => {
      const [file] = takeFiles(cifar);
      if (file) void this.useCifar(file);
    });
    byId('own-images').addEventListener('change', (event) => {
      const isSize = /** @type {HTMLInputElement} */ (event.target).name === 'size';
      if (isSize && this.#files.length > 0) void this.usePictures(this.#files);
    });
    byId('data-cancel').addEventListener('click', () => this.#reading?.abort());
    // Phones have no folders to choose.
    byId('pick-folder-label').hidden = !('webkitdirectory' in HTMLInputElement.prototype) || matchMedia('(pointer: coarse)').matches;
    session.on('data', () => this.#render());
    session.on('phase', () => this.#render());
    this.#render();
  }

  /** Loads the built-in shapes. @param {number} [count] number of images; the form's without it */
  async useShapes(count) {
    const select = /** @type {HTMLSelectElement} */ (byId('shapes-count'));
    if (count) select.value = String(count);
    await this.#load('Drawing shapes…', async () => [{ kind: 'shapes', count: Number(select.value), seed: 0 }, []]);
  }

  /** Loads the visitor's images. @param {File[]} files */
  async usePictures(files) {
    const pictures = files.filter((file) => kindOf(file) === 'picture');
    if (pictures.length === 0) {
      if (files.length > 0) showText(byId('data-error'), 'None of these files is an image that the browser knows. Choose PNG, JPEG or WebP files.');
      return;
    }
    byId('own-images').setAttribute('open', '');
    const size = Number(/** @type {HTMLInputElement} */ (document.querySelector('input[name=size]:checked')).value);
    await this.#load(`Reading ${counted(pictures.length, 'image')}…`, async (signal) => {
      const read = await readPictures(pictures, size, { signal, onProgress: (done, total) => this.#progress(done, total) });
      const { width, height, channels, rgba, count, broken, left } = read;
      if (count < FEWEST) {
        const reason = broken.length > 0 ? ` ${unreadable(broken)}` : '';
        throw new Error(`${counted(count, 'image')}: at least ${FEWEST} are needed.${reason} Choose more.`);
      }
      this.#files = pictures;
      const remarks = [
        broken.length > 0 ? unreadable(broken) : '',
        left > 0 ? `The first ${MOST_IMAGES.toLocaleString('en')} images are used.` : '',
        count < 200 ? 'With so few images the model mostly repeats them.' : '',
      ].filter(Boolean);
      return [{ kind: 'pictures', width, height, channels, rgba }, [rgba.buffer], remarks.join(' ')];
    });
  }

  /** Loads CIFAR-10. @param {File} file its archive, or one of the files in it */
  async useCifar(file) {
    byId('cifar').setAttribute('open', '');
    await this.#load(`Reading ${file.name}…`, async () => {
      if (file.size > LARGEST) throw new Error(`${file.name} is too large to be CIFAR-10. Choose cifar-10-binary.tar.gz.`);
      const bytes = await file.arrayBuffer();
      return [{ kind: 'cifar', bytes, name: file.name }, [bytes]];
    });
  }

  /**
   * @param {string} doing shown meanwhile
   * @param {(signal: AbortSignal) => Promise<[Record<string, unknown> & {kind: 'shapes' | 'pictures' | 'cifar'}, Transferable[], string?]>} prepare
   */
  async #load(doing, prepare) {
    this.#reading?.abort();
    const reading = new AbortController();
    this.#reading = reading;
    showText(byId('data-error'));
    byId('data-progress').hidden = false;
    setText(byId('data-count'), doing);
    byId('data-bar').removeAttribute('value');
    byId('data-cancel').hidden = true;
    let remark = '';
    try {
      const [request, transfer, remarks = ''] = await prepare(reading.signal);
      remark = remarks;
      byId('data-cancel').hidden = true;
      await this.#session.load(request, transfer);
    } catch (error) {
      // A later choice has taken over, or the visitor has stopped it.
      if (reading.signal.aborted) return;
      remark = '';
      showText(byId('data-error'), asEngineError(error).message);
      this.#session.report(error, { local: true });
    } finally {
      if (this.#reading === reading) {
        this.#reading = null;
        byId('data-progress').hidden = true;
      }
    }
    if (remark) byId('data-summary').append(element('p', { class: 'warn' }, remark));
  }

  /** @param {number} done @param {number} total */
  #progress(done, total) {
    const bar = /** @type {HTMLProgressElement} */ (byId('data-bar'));
    bar.value = done / total;
    byId('data-cancel').hidden = false;
    setText(byId('data-count'), `Reading ${done.toLocaleString('en')} of ${counted(total, 'image')}`);
  }

  #render() {
    const { data, phase, busy } = this.#session;
    /** @type {HTMLFieldSetElement} */ (byId('data-fields')).disabled = busy || phase === 'opening' || phase === 'lost';
    byId('data-locked').hidden = !busy;
    for (const badge of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll('.in-use'))) {
      badge.hidden = badge.dataset.kind !== data?.kind;
    }
    if (!data || data === this.#drawn) return;
    this.#drawn = data;
    const { name, count, validation, size, preview, classes } = data;
    const facts = `${counted(count, 'image')} of ${imageSize(size)}; ${validation.toLocaleString('en')} of them are held out.`;
    byId('data-summary').replaceChildren(element('p', {}, element('b', {}, name)), element('p', { class: 'note' }, facts));
    const classNames = classes.length > 0 ? ` of the classes ${classes.join(', ')}` : '';
    drawGrid(byId('preview'), preview, { label: `${Math.min(SHOWN, preview.count)} images${classNames}`, columns: 8, limit: SHOWN });
  }

  /** The data set that the preview shows. @type {import('./session.js').Data | null} */
  #drawn = null;
}

/** @param {string[]} names */
function unreadable(names) {
  const more = names.length > NAMED ? ` and ${names.length - NAMED} more` : '';
  return `Left out, because the browser cannot read ${names.length === 1 ? 'it' : 'them'}: ${names.slice(0, NAMED).join(', ')}${more}.`;
}
