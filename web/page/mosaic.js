// @ts-check
/** Draws pictures of the engine on canvases. */

/** @typedef {import('./client.js').Pictures} Pictures */

/**
 * Draws pictures as a grid. The canvas gets one pixel for each pixel of a picture and is scaled by the style sheet.
 * @param {HTMLCanvasElement} canvas
 * @param {Pictures} pictures
 * @param {{label: string, columns?: number, limit?: number, gap?: number}} options
 */
export function drawGrid(canvas, pictures, { label, columns, limit = pictures.count, gap }) {
  const { width, height } = pictures;
  const shown = Math.min(pictures.count, limit);
  const across = columns ?? Math.ceil(Math.sqrt(shown));
  const space = gap ?? Math.max(1, Math.round(width / 16));
  const down = Math.ceil(shown / across);
  // Setting the size clears the canvas.
  canvas.width = Math.max(1, across * (width + space) - space);
  canvas.height = Math.max(1, down * (height + space) - space);
  const context = canvas.getContext('2d');
  if (!context) return;
  for (let i = 0; i < shown; i += 1) {
    const at = [(i % across) * (width + space), Math.floor(i / across) * (height + space)];
    context.putImageData(imageData(pictures, i), at[0], at[1]);
  }
  canvas.setAttribute('aria-label', label);
  canvas.closest('.frame')?.setAttribute('data-filled', '');
}

/** Empties a canvas. @param {HTMLCanvasElement} canvas @param {string} label */
export function clearGrid(canvas, label) {
  canvas.width = canvas.height = 1;
  canvas.setAttribute('aria-label', label);
  canvas.closest('.frame')?.removeAttribute('data-filled');
}

/** Returns one of the pictures. @param {Pictures} pictures @param {number} index */
function imageData(pictures, index) {
  const { width, height, rgba } = pictures;
  const length = width * height * 4;
  const pixels = new Uint8ClampedArray(length);
  pixels.set(rgba.subarray(index * length, (index + 1) * length));
  return new ImageData(pixels, width, height);
}

/** Returns the first `count` pictures. @param {Pictures} pictures @param {number} count @returns {Pictures} */
export function firstOf(pictures, count) {
  const shown = Math.min(count, pictures.count);
  return { ...pictures, count: shown, rgba: pictures.rgba.subarray(0, shown * pictures.width * pictures.height * 4) };
}
