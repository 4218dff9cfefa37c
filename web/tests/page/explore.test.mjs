/** Looking inside a model, its file, and the check of the GPU. */

import assert from 'node:assert/strict';
import fs from 'node:fs';
import { test } from 'node:test';
import { drop, file, inWorker, look, phase, png, ready, requests, trained } from './harness.mjs';

const text = (page, selector) => page.locator(selector).innerText();
const pixels = (page, selector) => page.locator(selector).evaluate((canvas) => canvas.toDataURL());
/** Waits until a canvas differs from what it was. */
const changed = (page, selector, before) => page.waitForFunction(([id, old]) => document.querySelector(id).toDataURL() !== old, [selector, before]);

test('sliders move latent dimensions, those with most KL first', async (t) => {
  const page = await trained(t);
  await page.waitForFunction(() => document.querySelector('#dials-caption').textContent === 'Held-out image 1');
  const kls = (await page.locator('.dial .kl').allInnerTexts()).map((kl) => Number(kl.replace('KL ', '')));
  assert.equal(kls.length, 12);
  assert.deepEqual(kls, [...kls].sort((a, b) => b - a));

  const start = await pixels(page, '#dials-canvas');
  const first = page.locator('#dials-list input').first();
  const dimension = Number(await first.getAttribute('data-dimension'));
  await first.fill('2.5');
  await changed(page, '#dials-canvas', start);
  assert.equal(await text(page, `output[for=dial-${dimension}]`), '+2.50');
  await look(page, 'dials', { target: '#explore' });
  await page.click('#dials-reset');
  await page.waitForFunction((old) => document.querySelector('#dials-canvas').toDataURL() === old, start);

  await page.click('#dials-image');
  await page.waitForFunction(() => document.querySelector('#dials-caption').textContent === 'Held-out image 2');
  await page.click('#dials-random');
  assert.equal(await text(page, '#dials-caption'), 'A random latent vector');
  await page.click('#dials-more');
  assert.equal(await page.locator('#dials-list input').count(), 24);
  assert.equal(await page.evaluate(() => document.activeElement.closest('.dial') === document.querySelectorAll('.dial')[12]), true);
});

test('many moves of a slider cause few requests, and the last one is drawn', async (t) => {
  const page = await trained(t);
  await page.waitForFunction(() => document.querySelector('#dials-caption').textContent === 'Held-out image 1');
  const before = (await requests(page, 'decode')).length;
  await page.locator('#dials-list input').first().evaluate((input) => {
    for (let i = 0; i < 60; i += 1) {
      input.value = String(i / 20 - 1.5);
      input.dispatchEvent(new Event('input', { bubbles: true }));
    }
  });
  await page.waitForTimeout(200);
  const sent = (await requests(page, 'decode')).length - before;
  assert.ok(sent >= 1 && sent <= 2, `${sent} requests`);
});

test('a path between two held-out images', async (t) => {
  const page = await trained(t);
  await page.click('#tab-path');
  await page.waitForFunction(() => document.querySelector('#path-b-name').textContent === 'Held-out image 2');
  // A canvas is 300 pixels wide before anything is drawn on it.
  await page.waitForFunction(() => document.querySelector('#path-strip').width !== 300);
  const middle = await pixels(page, '#path-middle');
  await page.locator('#path-t').fill('90');
  await changed(page, '#path-middle', middle);
  assert.equal(await text(page, '#path-percent'), '90 %');
  await page.click('#path-a-next');
  await page.waitForFunction(() => document.querySelector('#path-a-name').textContent === 'Held-out image 3');
  await look(page, 'path', { target: '#explore' });
});

test('an own image is encoded, and its latent dimensions can be moved', async (t) => {
  const page = await trained(t);
  await page.click('#tab-own');
  await look(page, 'own-empty', { target: '#explore' });
  await drop(page, [png('mine.png', 50, 40, (x, y) => [90 + x, y * 4, 40])], '#panel-own');
  await page.waitForSelector('#own-result:visible');
  assert.match(await text(page, '#own-numbers'), /^Squared error 0\.\d{4}\. The latent vector carries \d+\.\d nats, or \d+ bits\.$/);
  assert.equal((await requests(page, 'encode')).at(-1).bytes, 32 * 32 * 4);
  await look(page, 'own', { target: '#explore' });
  await page.click('#own-dials');
  assert.equal(await text(page, '#dials-caption'), 'Your image');
  assert.equal(await page.evaluate(() => document.activeElement.id), 'tab-dials');

  await page.click('#tab-own');
  await page.setInputFiles('#own-file', { name: 'broken.png', mimeType: 'image/png', buffer: Buffer.from('x') });
  await page.waitForSelector('#explore-error:visible');
  assert.equal(await text(page, '#explore-error'), 'The browser cannot read broken.png. Choose a PNG, JPEG or WebP file.');
});

test('samples at a temperature', async (t) => {
  const page = await trained(t);
  await page.click('#tab-draw');
  await page.waitForFunction(() => /^36 samples/.test(document.querySelector('#draw-canvas').getAttribute('aria-label')));
  const before = await pixels(page, '#draw-canvas');
  await page.locator('#temperature').fill('1.2');
  await changed(page, '#draw-canvas', before);
  assert.equal(await text(page, '#temperature-value'), '1.20');
  await page.click('#draw');
  const seeds = (await requests(page, 'sample')).map(({ seed, temperature }) => [seed, temperature]);
  assert.deepEqual(seeds.slice(-2), [[1, 1.2], [2, 1.2]]);
  await look(page, 'draw', { target: '#explore' });
});

test('a downloaded model opens again', async (t) => {
  const page = await trained(t);
  const [download] = await Promise.all([page.waitForEvent('download'), page.click('#model-download')]);
  const bytes = fs.readFileSync(await download.path());
  assert.equal(bytes.toString(), 'weights after 58 steps');
  await page.setInputFiles('#model-file', { name: 'mine.safetensors', mimeType: 'application/octet-stream', buffer: bytes });
  await phase(page, 'loaded');
  assert.match(await text(page, '#model-summary'), /^From mine.safetensors, after 25 epochs: 32 channels, 4 blocks in each group, 64 latent dimensions/);
  assert.equal((await requests(page, 'load')).at(-1).bytes, bytes.length);
  await page.waitForFunction(() => /of the opened model/.test(document.querySelector('#samples').getAttribute('aria-label')));
  assert.ok(await page.locator('#explore-tools').isVisible());
  await look(page, 'loaded');
  await page.click('#train-button');
  await phase(page, 'training');
});

test('files that are no models are refused, and the model stays', async (t) => {
  const page = await trained(t);
  await Promise.all([page.waitForEvent('download'), page.click('#model-download')]);
  await drop(page, [file('other.safetensors', 'something else')]);
  await page.waitForSelector('#model-error:visible');
  assert.match(await text(page, '#model-error'), /Cannot read other.safetensors: it is not a safetensors file/);
  assert.match(await text(page, '#model-summary'), /^Trained on Built-in shapes/);
  await look(page, 'no-model', { target: '.pairs' });
});

test('a model for images of another size starts from the prior', async (t) => {
  const page = await ready(t);
  await drop(page, [file('large.safetensors', 'weights 64x64')]);
  await phase(page, 'loaded');
  await page.waitForFunction(() => document.querySelector('#dials-caption').textContent === 'The centre of the prior');
  assert.match(await text(page, '#explore-mismatch'), /The model knows images of 64×64 pixels, colour. The images in use are 32×32/);
  assert.ok(await page.locator('#dials-image').isHidden());
  assert.equal(await page.locator('.dial .kl').count(), 0);
  await page.click('#tab-path');
  assert.ok(await page.locator('#path-strip').isHidden());
  await look(page, 'mismatch', { target: '#explore' });
});

test('the pretrained model opens with one click where it exists', async (t) => {
  const without = await ready(t);
  assert.ok(await without.locator('#model-pretrained').isHidden());
  const page = await ready(t, 'pretrained');
  await page.click('#model-pretrained');
  await phase(page, 'loaded');
  assert.match(await text(page, '#model-summary'), /^From pretrained model/);
});

test('the check of the GPU reports and can be copied', async (t) => {
  const page = await ready(t, 'check-fails');
  await inWorker(page, (double) => (double.checkDelay = 60));
  await page.click('#check-run');
  await page.waitForFunction(() => /^\d+ of 45/.test(document.querySelector('#check-count').textContent));
  assert.equal(await page.evaluate(() => document.activeElement.id), 'check-stop');
  assert.ok(await page.locator('#train-button').isDisabled());
  await look(page, 'checking', { target: '.pairs' });
  await inWorker(page, (double) => (double.checkDelay = 1));
  await page.waitForSelector('#check-report:visible');
  assert.equal(await text(page, '#check-verdict'), '37 checks passed, 3 failed, 5 not applicable. Please copy the report into an issue of the project.');
  assert.match(await text(page, '#check-failures'), /elbo\/odd sizes\/forward\/tiled 241 % of the error limit/);
  assert.equal(await page.evaluate(() => document.activeElement.id), 'check-run');
  assert.ok(await page.locator('#train-button').isEnabled());
  await page.click('#check-copy');
  await page.waitForFunction(() => document.querySelector('#check-copied').textContent === 'Copied.');
  assert.match(await page.evaluate(() => navigator.clipboard.readText()), /adapter \| Apple M3/);
  await look(page, 'checked', { target: '.pairs' });
});

test('a check of all kernels without a failure confirms the GPU', async (t) => {
  const page = await ready(t);
  await page.click('#check-run');
  await page.waitForSelector('#check-report:visible');
  assert.equal(await text(page, '#check-verdict'), '40 checks passed, 0 failed, 5 not applicable. This GPU computes what it should.');
});

test('the check takes a filter, and stops', async (t) => {
  const page = await ready(t);
  await page.fill('#check-filter', 'nothing');
  await page.keyboard.press('Enter');
  await page.waitForSelector('#check-error:visible');
  assert.match(await text(page, '#check-error'), /^No check has a name that contains "nothing"/);
  await inWorker(page, (double) => (double.checkDelay = 50));
  await page.fill('#check-filter', 'conv2d');
  await page.keyboard.press('Enter');
  await page.waitForFunction(() => /of 9$/.test(document.querySelector('#check-count').textContent));
  await page.click('#check-stop');
  await page.waitForSelector('#check-report:visible');
  assert.match(await text(page, '#check-verdict'), /^\d checks? passed, 0 failed, \d not applicable\.$/);
  assert.ok(await page.locator('#check-run').isVisible());
});
