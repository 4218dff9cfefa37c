// @ts-check
/** Files that are dropped anywhere on the page. */

import { byId } from './dom.js';
import { droppedFiles, kindOf } from './pictures.js';

/**
 * Passes dropped files to where they belong.
 * @param {{model: (file: File) => void, cifar: (file: File) => void, pictures: (files: File[]) => void, own: (file: File) => void, unknown: () => void}} targets
 */
export function acceptDrops({ model, cifar, pictures, own, unknown }) {
  const veil = byId('drop-veil');
  const hasFiles = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes('Files');
  document.addEventListener('dragover', (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    veil.hidden = false;
  });
  document.addEventListener('dragleave', (event) => {
    if (!event.relatedTarget) veil.hidden = true;
  });
  document.addEventListener('drop', async (event) => {
    if (!hasFiles(event) || !event.dataTransfer) return;
    event.preventDefault();
    veil.hidden = true;
    const onOwn = event.target instanceof Element && event.target.closest('#panel-own');
    const files = await droppedFiles(event.dataTransfer);
    const kinds = files.map(kindOf);
    const first = (/** @type {string} */ kind) => files[kinds.indexOf(/** @type {any} */ (kind))];
    if (kinds.includes('model')) model(first('model'));
    else if (kinds.includes('cifar')) cifar(first('cifar'));
    else if (onOwn && kinds.includes('picture')) own(first('picture'));
    else if (kinds.includes('picture')) pictures(files);
    else unknown();
  });
}
