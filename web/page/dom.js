// @ts-check
/** Short forms of DOM calls. */

/**
 * Returns the element with this id.
 * @template {HTMLElement} [T=HTMLElement]
 * @param {string} id
 * @returns {T}
 */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`the page has no element #${id}`);
  return /** @type {T} */ (element);
}

/**
 * Returns a new element.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, string>} attributes
 * @param {(Node | string)[]} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Sets the text of an element if it differs, so that screen readers announce only changes. @param {HTMLElement} target @param {string} text */
export function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/** Shows a message in an element, or hides the element. @param {HTMLElement} target @param {string} [text] */
export function showText(target, text = '') {
  setText(target, text);
  target.hidden = text === '';
}

/** Returns the files of an input and empties it, so that the same file can be chosen again. @param {HTMLInputElement} input */
export function takeFiles(input) {
  const files = [...(input.files ?? [])];
  input.value = '';
  return files;
}

/** Offers bytes to the visitor as a file. @param {BlobPart} bytes @param {string} name */
export function saveFile(bytes, name) {
  const url = URL.createObjectURL(new Blob([bytes], { type: 'application/octet-stream' }));
  element('a', { href: url, download: name }).click();
  // The browser reads the address after this call returns.
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/**
 * Returns a function that runs `work` for the latest arguments only: while a call runs, all but the newest of those that wait are dropped.
 * @template {unknown[]} A
 * @param {(...args: A) => Promise<void>} work
 * @returns {(...args: A) => Promise<void>}
 */
export function latestOnly(work) {
  let running = false;
  /** @type {A | undefined} */
  let next;
  return async (...args) => {
    next = args;
    if (running) return;
    running = true;
    try {
      while (next) {
        const now = next;
        next = undefined;
        await work(...now);
      }
    } finally {
      running = false;
    }
  };
}
