// @ts-check
/** The visitor's image files as pixels: decoded, cropped to the central square and resized by the browser. */

/** Most images that are read; at 64×64 pixels they take 320 MiB. */
export const MOST_IMAGES = 20_000;

/** Images that are decoded at the same time. */
const AT_ONCE = 4;

/**
 * @typedef {object} ReadPictures
 * @property {number} width
 * @property {number} height
 * @property {1 | 3} channels 1 if all images are grey
 * @property {Uint8Array<ArrayBuffer>} rgba
 * @property {number} count
 * @property {string[]} broken names of the files that are not images
 * @property {number} left number of files beyond [`MOST_IMAGES`]
 */

/**
 * Returns the RGBA pixels of an image, cropped to its central square, on white where it is transparent.
 * @param {Blob} file
 * @param {number} size width and height of the result
 * @returns {Promise<Uint8ClampedArray>}
 */
export async function readPicture(file, size) {
  const whole = await createImageBitmap(file);
  try {
    const side = Math.min(whole.width, whole.height);
    const [x, y] = [Math.floor((whole.width - side) / 2), Math.floor((whole.height - side) / 2)];
    const options = { resizeWidth: size, resizeHeight: size, resizeQuality: /** @type {const} */ ('high') };
    const square = await createImageBitmap(whole, x, y, side, side, options);
    const context = new OffscreenCanvas(size, size).getContext('2d', { willReadFrequently: true });
    if (!context) throw new Error('the browser cannot draw images here');
    context.fillStyle = '#fff';
    context.fillRect(0, 0, size, size);
    context.drawImage(square, 0, 0);
    square.close();
    return context.getImageData(0, 0, size, size).data;
  } finally {
    whole.close();
  }
}

/**
 * Reads image files. Files that the browser cannot decode are left out and named in the result.
 * @param {File[]} files
 * @param {number} size width and height of the result
 * @param {{signal: AbortSignal, onProgress: (done: number, total: number) => void}} options
 * @returns {Promise<ReadPictures>} rejects with the signal's reason
 */
export async function readPictures(files, size, { signal, onProgress }) {
  const chosen = files.slice(0, MOST_IMAGES);
  const length = size * size * 4;
  const rgba = new Uint8Array(chosen.length * length);
  /** @type {boolean[]} */
  const read = new Array(chosen.length).fill(false);
  let [next, done] = [0, 0];
  const worker = async () => {
    while (next < chosen.length) {
      signal.throwIfAborted();
      const index = next++;
      try {
        rgba.set(await readPicture(chosen[index], size), index * length);
        read[index] = true;
      } catch {
        // It stays false in `read`, so the file is reported as broken.
      }
      done += 1;
      onProgress(done, chosen.length);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  signal.throwIfAborted();
  // Moves the images together that could be read.
  let count = 0;
  for (const [index, good] of read.entries()) {
    if (!good) continue;
    rgba.copyWithin(count * length, index * length, (index + 1) * length);
    count += 1;
  }
  const pixels = rgba.slice(0, count * length);
  const broken = chosen.filter((_, index) => !read[index]).map((file) => file.name);
  return { width: size, height: size, channels: isGrey(pixels) ? 1 : 3, rgba: pixels, count, broken, left: files.length - chosen.length };
}

/** Whether red, green and blue are equal in all pixels. @param {Uint8Array} rgba */
function isGrey(rgba) {
  for (let i = 0; i < rgba.length; i += 4) {
    if (rgba[i] !== rgba[i + 1] || rgba[i] !== rgba[i + 2]) return false;
  }
  return true;
}

/** Returns all files of a drop, those in folders included, in the order of their paths. @param {DataTransfer} transfer @returns {Promise<File[]>} */
export async function droppedFiles(transfer) {
  const items = [...transfer.items].filter((item) => item.kind === 'file');
  // Entries must be taken before the first wait: the browser empties the drop afterwards.
  const sources = items.map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile());
  const files = [];
  for (const source of sources) {
    if (source instanceof File) files.push(source);
    else if (source) files.push(...(await filesOf(source)));
  }
  return files;
}

/** @param {FileSystemEntry} entry @returns {Promise<File[]>} */
async function filesOf(entry) {
  if (entry.name.startsWith('.')) return [];
  if (entry.isFile) return [await new Promise((resolve, reject) => /** @type {FileSystemFileEntry} */ (entry).file(resolve, reject))];
  const reader = /** @type {FileSystemDirectoryEntry} */ (entry).createReader();
  /** @type {FileSystemEntry[]} */
  const entries = [];
  // A reader returns the entries of a folder in parts, the last of which is empty.
  for (;;) {
    /** @type {FileSystemEntry[]} */
    const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (part.length === 0) break;
    entries.push(...part);
  }
  entries.sort((a, b) => (a.name < b.name ? -1 : 1));
  const files = [];
  for (const inner of entries) files.push(...(await filesOf(inner)));
  return files;
}

/** Returns what a file is for, by its name and type. @param {File} file @returns {'model' | 'cifar' | 'picture' | 'unknown'} */
export function kindOf(file) {
  const name = file.name.toLowerCase();
  if (name.endsWith('.safetensors')) return 'model';
  if (/\.(tar\.gz|tgz|bin)$/.test(name)) return 'cifar';
  return file.type.startsWith('image/') ? 'picture' : 'unknown';
}
