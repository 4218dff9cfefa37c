// @ts-check
/** The GPU: what it is, or how to get WebGPU in this browser. */

import { byId, element, setText } from './dom.js';
import { bytes } from './format.js';

/** How to get WebGPU. Versions as of the status page of the WebGPU working group. */
const BROWSERS = [
  {
    name: 'Chrome, Edge and other Chromium browsers',
    pattern: /Chrom(e|ium)|Edg|OPR/,
    advice: 'Update to version 113 or newer (on Linux 144 with a recent Intel GPU, 147 with one from NVIDIA) and switch on graphics acceleration in the settings; on other Linux machines also switch on chrome://flags/#enable-unsafe-webgpu.',
  },
  {
    name: 'Firefox',
    pattern: /Firefox/,
    advice: 'Update to version 141 or newer on Windows, 147 on a Mac with an Apple chip; elsewhere use Firefox Nightly or Chrome.',
  },
  {
    name: 'Safari',
    pattern: /^((?!Chrom|Android).)*Safari/,
    advice: 'Update to macOS, iOS or iPadOS 26, which brings Safari 26; on an iPhone or iPad this goes for every browser.',
  },
];

/** Titles for what an update or another browser can change. */
const TITLES = { 'no-webgpu': 'This browser cannot use the GPU yet', 'no-adapter': 'No GPU was found' };

/**
 * Returns vendor and architecture of the GPU in the browser's words. Browsers keep the name of the device from pages, and the engine has it
 * from the browser.
 */
async function browserName() {
  // TypeScript's library does not describe WebGPU.
  const adapter = await /** @type {any} */ (navigator).gpu?.requestAdapter({ powerPreference: 'high-performance' }).catch(() => null);
  const { description = '', vendor = '', architecture = '' } = adapter?.info ?? {};
  return description || [vendor, architecture].filter(Boolean).join(' ') || 'without a name';
}

/** Describes the GPU. @param {import('./session.js').Adapter} adapter */
export async function showAdapter({ name, vendor, driver, backend, kind, limits, features }) {
  const rows = [
    ['Vendor', vendor],
    ['Driver', driver],
    ['Backend', backend],
    ['Largest buffer', bytes(limits.maxBufferSize)],
    ['Largest binding', bytes(limits.maxBindingSize)],
    ['Features', features.join(', ')],
  ].filter(([, value]) => value);
  const list = element('dl', {}, ...rows.flatMap(([term, value]) => [element('dt', {}, term), element('dd', {}, value)]));
  const known = name || (await browserName());
  const title = kind === 'software' ? `No GPU, but a software driver: ${known}` : `Your GPU: ${known}`;
  const details = element('details', {}, element('summary', {}, title), list);
  /** @type {HTMLElement[]} */
  const parts = [details];
  if (kind === 'software') parts.push(element('p', { class: 'warn' }, 'It computes on the CPU, so training is slow. The tiny model is chosen.'));
  byId('gpu').replaceChildren(...parts);
}

/** Explains why there is no GPU, and what to do about it. @param {import('./client.js').EngineError} error */
export function showSupport({ kind, message }) {
  byId('gpu').replaceChildren('No GPU is available to this page.');
  byId('support').hidden = false;
  byId('workbench').hidden = true;
  setText(byId('support-title'), TITLES[/** @type {keyof typeof TITLES} */ (kind)] ?? 'The page could not start');
  byId('support-advice').hidden = !(kind in TITLES);
  const secure = window.isSecureContext ? '' : ' Browsers offer WebGPU only over https, and this page was opened without it: use its https address.';
  setText(byId('support-reason'), message + secure);
  const own = BROWSERS.find(({ pattern }) => pattern.test(navigator.userAgent));
  const sorted = [...BROWSERS].sort((a, b) => Number(b === own) - Number(a === own));
  const entries = sorted.flatMap((browser) => {
    const term = element('dt', {}, browser.name);
    if (browser === own) term.append(' ', element('span', { class: 'badge' }, 'your browser'));
    return [term, element('dd', {}, browser.advice)];
  });
  byId('support-list').replaceChildren(...entries);
  byId('support-retry').addEventListener('click', () => location.reload());
}
