/**
 * Serves the page with the test double of its worker, opens it in Chromium, and looks at it.
 *
 *     node --test web/tests/page/
 *     SCREENSHOTS=target/page node --test web/tests/page/
 *
 * The folder in the address of the page is a scenario of the double. In the folder `built` the page has the real worker.
 */

import assert from 'node:assert/strict';
import fs from 'node:fs';
import http from 'node:http';
import { createRequire } from 'node:module';
import path from 'node:path';
import { after } from 'node:test';
import { fileURLToPath } from 'node:url';
import zlib from 'node:zlib';
import { chromium } from 'playwright-core';

const here = path.dirname(fileURLToPath(import.meta.url));
const root = path.resolve(here, '../../page');
/** The page as `make web` builds it, with the real worker. */
const dist = path.resolve(here, '../../dist');
/** Whether it was built. */
export const built = fs.existsSync(path.join(dist, 'engine_bg.wasm'));
const resolve = createRequire(import.meta.url).resolve;
const vendor = path.dirname(resolve('uplot'));
const axe = fs.readFileSync(resolve('axe-core/axe.min.js'), 'utf8');

const FLAGS = ['--no-sandbox', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader'];
const TYPES = { '.html': 'text/html; charset=utf-8', '.js': 'text/javascript', '.css': 'text/css', '.wasm': 'application/wasm', '.safetensors': 'application/octet-stream' };

/** Folder for screenshots of all states, at two widths and in both colour schemes. Without it each state is only checked. */
const SHOTS = process.env.SCREENSHOTS;
const VIEWS = SHOTS
  ? [[1280, 'light'], [1280, 'dark'], [390, 'light'], [390, 'dark']]
  : [[1280, 'light'], [390, 'dark']];
if (SHOTS) fs.mkdirSync(SHOTS, { recursive: true });

/** Returns the file for an address `/SCENARIO/FILE`. */
function fileOf(address) {
  const [, scenario, ...rest] = address.split('/');
  const name = rest.join('/');
  if (scenario === 'built') return path.join(dist, path.normalize(`/${name || 'index.html'}`));
  if (name === 'worker.js' && scenario !== 'no-worker') return path.join(here, 'double.js');
  if (name.startsWith('vendor/')) return path.join(vendor, path.basename(name));
  return path.join(root, path.normalize(`/${name || 'index.html'}`));
}

const server = http.createServer((request, response) => {
  const address = new URL(request.url, 'http://localhost').pathname;
  if (address === '/pretrained/pretrained/model.safetensors') {
    response.writeHead(200, { 'content-type': TYPES['.safetensors'] });
    response.end(request.method === 'HEAD' ? '' : 'weights of the pretrained model');
    return;
  }
  const file = fileOf(address);
  if (!fs.existsSync(file)) {
    response.writeHead(404);
    response.end();
    return;
  }
  response.writeHead(200, { 'content-type': TYPES[path.extname(file)] ?? 'application/octet-stream', 'cache-control': 'no-store' });
  fs.createReadStream(file).pipe(response);
});
await new Promise((done) => server.listen(0, '127.0.0.1', done));
const origin = `http://127.0.0.1:${server.address().port}`;
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', headless: true, args: FLAGS });

after(async () => {
  await browser.close();
  server.close();
});

/**
 * Opens the page. Fails the test if the page writes an error to the console that `page.expected` does not match.
 * @param {import('node:test').TestContext} t
 */
export async function open(t, scenario = 'gpu', options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, colorScheme: 'light', reducedMotion: 'reduce', permissions: ['clipboard-read', 'clipboard-write'], ...options });
  const page = await context.newPage();
  const errors = [];
  page.on('console', (message) => {
    // Browsers report each failed request; that of the pretrained model asks whether there is one.
    if (message.type() === 'error' && !message.location().url.includes('/pretrained/')) errors.push(message.text());
  });
  page.on('pageerror', (error) => errors.push(error.message));
  t.after(async () => {
    await context.close();
    const unexpected = errors.filter((error) => !page.expected?.test(error));
    assert.deepEqual(unexpected, [], 'errors in the console');
  });
  await page.goto(`${origin}/${scenario}/`);
  return page;
}

/** Waits until the page is in a phase. */
export async function phase(page, name, timeout = 60_000) {
  await page.waitForSelector(`body[data-phase=${name}]`, { timeout });
}

/** Calls `work(double, argument)` in the worker. */
export async function inWorker(page, work, argument) {
  const [worker] = page.workers();
  return worker.evaluate(`(${work})(globalThis.double, ${JSON.stringify(argument) ?? 'undefined'})`);
}

/** Ends the process of the browser that drives the GPU, as a crash of a driver does. */
export async function killGpu() {
  const session = await browser.newBrowserCDPSession();
  const { processInfo } = await session.send('SystemInfo.getProcessInfo');
  process.kill(processInfo.find(({ type }) => type === 'GPU').id, 'SIGKILL');
}

/** Returns the requests of a type that the worker has received. */
export async function requests(page, type) {
  return (await inWorker(page, (double) => double.requests)).filter((request) => request.type === type);
}

/** Opens the page with its first data set and waits until it can train. */
export async function ready(t, scenario, options) {
  const page = await open(t, scenario, options);
  await phase(page, 'ready');
  await page.waitForFunction(() => !document.querySelector('#train-button').disabled);
  return page;
}

/** Trains a tiny model to the end. */
export async function trained(t, scenario, options) {
  const page = await ready(t, scenario, options);
  await quick(page);
  await page.click('#train-button');
  await phase(page, 'finished');
  return page;
}

/** Chooses settings with which a run takes a second or so. */
export async function quick(page, epochs = 2) {
  await page.selectOption('#shapes-count', '1000');
  await page.click('#use-shapes');
  await page.waitForFunction(() => document.querySelector('#data-summary').textContent.includes('1,000'));
  await page.evaluate(() => document.querySelector('#settings-details').setAttribute('open', ''));
  await page.fill('#epochs-count', String(epochs));
  await page.evaluate(() => document.querySelector('#settings-details').removeAttribute('open'));
  await page.waitForFunction((n) => document.querySelector('#forecast-steps').textContent.startsWith(`${(29 * n).toLocaleString("en")} `), epochs);
}

/**
 * Looks at a state of the page, or at the part `target` of it: nothing scrolls sideways, axe-core finds no violation, and there are
 * screenshots if the variable SCREENSHOTS names a folder.
 */
export async function look(page, name, { target } = {}) {
  const size = page.viewportSize();
  for (const [width, colorScheme] of VIEWS) {
    await page.setViewportSize({ width, height: width === 390 ? 844 : 900 });
    await page.emulateMedia({ colorScheme });
    await page.waitForTimeout(60);
    const where = `${name} (${width} pixels wide, ${colorScheme})`;
    const wide = await page.evaluate(() => {
      const { scrollWidth, clientWidth } = document.documentElement;
      if (scrollWidth <= clientWidth) return [];
      const beyond = [...document.querySelectorAll('body *')].filter((element) => element.getBoundingClientRect().right > clientWidth);
      return [`${scrollWidth} pixels`, ...beyond.slice(0, 5).map((element) => `${element.tagName} ${element.id} ${element.className}`)];
    });
    assert.deepEqual(wide, [], `${where} scrolls sideways`);
    assert.deepEqual(await violations(page, target), [], `axe-core finds violations in ${where}`);
    if (!SHOTS) continue;
    const shot = { path: path.join(SHOTS, `${name}-${width}-${colorScheme}.png`) };
    await (target ? page.locator(target).screenshot(shot) : page.screenshot({ ...shot, fullPage: true }));
  }
  await page.emulateMedia({ colorScheme: 'light' });
  await page.setViewportSize(size);
}

/** Returns what axe-core finds in the page, or in a part of it. */
async function violations(page, target) {
  if (!(await page.evaluate(() => 'axe' in window))) await page.evaluate(axe);
  return page.evaluate(async (part) => {
    const result = await window.axe.run(part ?? document, { resultTypes: ['violations'] });
    return result.violations.flatMap(({ id, nodes }) => nodes.map((node) => `${id}: ${node.target.join(' ')}: ${node.any[0]?.message ?? node.failureSummary}`));
  }, target);
}

/** Drops files on an element. */
export async function drop(page, files, selector = 'body') {
  await page.evaluate(({ files: list, selector: target }) => {
    const transfer = new DataTransfer();
    for (const { name, type, base64 } of list) {
      const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
      transfer.items.add(new File([bytes], name, { type }));
    }
    const element = document.querySelector(target);
    for (const kind of ['dragover', 'drop']) element.dispatchEvent(new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: transfer }));
  }, { files: files.map(({ name, mimeType, buffer }) => ({ name, type: mimeType, base64: buffer.toString('base64') })), selector });
}

/** Returns a file for `drop` and `setInputFiles`: a PNG image whose pixels are `colour(x, y)`. */
export function png(name, width, height, colour) {
  const rows = Buffer.alloc(height * (1 + 3 * width));
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) rows.set(colour(x, y), y * (1 + 3 * width) + 1 + 3 * x);
  }
  const chunk = (type, data) => {
    const body = Buffer.concat([Buffer.from(type, 'latin1'), data]);
    const out = Buffer.alloc(body.length + 8);
    out.writeUInt32BE(data.length, 0);
    body.copy(out, 4);
    out.writeUInt32BE(zlib.crc32(body), body.length + 4);
    return out;
  };
  const header = Buffer.alloc(13);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  header.set([8, 2], 8);
  const signature = Buffer.from([137, 80, 78, 71, 13, 10, 26, 10]);
  return { name, mimeType: 'image/png', buffer: Buffer.concat([signature, chunk('IHDR', header), chunk('IDAT', zlib.deflateSync(rows)), chunk('IEND', Buffer.alloc(0))]) };
}

/** Returns a file with these bytes. */
export function file(name, bytes, mimeType = 'application/octet-stream') {
  return { name, mimeType, buffer: Buffer.from(bytes) };
}
