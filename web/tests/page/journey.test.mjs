/**
 * What a visitor does from the first look to a model that is opened again, with the test double and with the real worker. The same steps
 * pass with both, so the double answers as the worker does. The real one computes in software: the model is as small as can be.
 */

import assert from 'node:assert/strict';
import fs from 'node:fs';
import { test } from 'node:test';
import { built, file, inWorker, killGpu, open, phase, png } from './harness.mjs';

/** Milliseconds for what has to be compiled or computed on the way. */
const LONG = 150_000;
const SETTINGS = { channels: 4, latentDim: 8, batchSize: 12, 'epochs-count': 3 };
/** 36 of them train, in three steps of an epoch. */
const IMAGES = Array.from({ length: 40 }, (_, i) => png(`${i}.png`, 48, 40, (x, y) => [i * 6, x * 5, y * 6]));

const text = (page, selector) => page.locator(selector).innerText();
/** Waits until `check(document)` holds. */
const until = (page, check) => page.waitForFunction(check, undefined, { timeout: LONG });

async function journey(t, scenario) {
  const page = await open(t, scenario, { acceptDownloads: true });
  page.setDefaultTimeout(LONG);
  await phase(page, 'ready', LONG);
  await page.waitForSelector('#gpu summary');
  assert.match(await text(page, '#gpu'), /^(Your GPU: |No GPU, but a software driver: )[^\n]/);

  await until(page, () => document.querySelector('#data-summary').textContent.includes('Built-in shapes'));
  await page.setInputFiles('#pick-images', IMAGES);
  await until(page, () => document.querySelector('#data-summary').textContent.includes('40 images of 32×32 pixels, colour; 4 of them'));
  await page.evaluate(() => document.querySelector('#settings-details').setAttribute('open', ''));
  for (const [field, value] of Object.entries(SETTINGS)) await page.fill(`#${field}`, String(value));
  await until(page, () => document.querySelector('#forecast-steps').textContent === '9 (3 an epoch)');
  assert.match(await text(page, '#forecast'), /Parameters\s+[\d,]+\s+GPU memory\s+[\d.]+ [KMG]iB\s+Work per step\s+[\d.]+ [MG]FLOP/);

  if (scenario !== 'built') await inWorker(page, (double) => (double.pace = { delay: 150, steps: 1 }));
  await page.click('#train-button');
  await phase(page, 'training', LONG);
  await until(page, () => document.querySelectorAll('#epoch-rows tr').length > 0);
  await page.click('#train-button');
  await phase(page, 'paused', LONG);
  for (const tile of ['total', 'recon', 'kl', 'mse', 'bits', 'rate']) assert.match(await text(page, `#tile-${tile}`), /^−?[\d,.]+$/);
  for (const board of ['originals', 'reconstructions', 'samples']) assert.match(await page.locator(`#${board}`).getAttribute('aria-label'), /after \d+ steps?: \d+ images$/);
  await page.click('#train-button');
  await phase(page, 'finished', LONG);
  assert.equal(await text(page, '#progress-left'), 'Step 9 of 9');
  await page.evaluate(() => document.querySelector('#epochs').setAttribute('open', ''));
  assert.equal((await page.locator('#epoch-rows td:first-child').allInnerTexts()).length, 3);
  assert.equal(await page.locator('#epoch-rows .best').count(), 1);

  await until(page, () => document.querySelector('#dials-caption').textContent === 'Held-out image 1' && document.querySelectorAll('.dial .kl').length === 8);
  await page.click('#tab-path');
  // A canvas is 300 pixels wide before anything is drawn on it.
  await until(page, () => document.querySelector('#path-strip').width !== 300);
  await page.click('#tab-draw');
  await until(page, () => /^36 samples/.test(document.querySelector('#draw-canvas').getAttribute('aria-label')));
  await page.click('#tab-own');
  await page.setInputFiles('#own-file', png('mine.png', 40, 40, (x, y) => [x * 6, y * 6, 90]));
  await until(page, () => /^Squared error \d/.test(document.querySelector('#own-numbers').textContent));
  assert.ok(await page.locator('#explore-error').isHidden());

  const [download] = await Promise.all([page.waitForEvent('download'), page.click('#model-download')]);
  const bytes = fs.readFileSync(await download.path());
  await page.setInputFiles('#model-file', file('mine.safetensors', bytes));
  await phase(page, 'loaded', LONG);
  assert.match(await text(page, '#model-summary'), /^From mine.safetensors, after \d+ epochs?: \d+ channels/);
  await page.setInputFiles('#model-file', file('broken.safetensors', bytes.subarray(3)));
  await page.waitForSelector('#model-error:visible');
  assert.match(await text(page, '#model-error'), /broken.safetensors/);
  assert.match(await text(page, '#model-summary'), /^From mine.safetensors/);

  await page.fill('#check-filter', 'elbo');
  await page.click('#check-run');
  await page.waitForSelector('#check-report:visible');
  assert.match(await text(page, '#check-verdict'), /^\d+ checks? passed, 0 failed/);

  if (scenario === 'built') await killGpu();
  else await inWorker(page, (double) => double.lose('The GPU was lost.'));
  await phase(page, 'lost', LONG);
  await page.click('#train-button');
  await phase(page, 'loaded', LONG);
  await page.click('#tab-draw');
  await until(page, () => document.querySelector('#explore-error').hidden && /^36 samples/.test(document.querySelector('#draw-canvas').getAttribute('aria-label')));
  assert.match(await text(page, '#model-summary'), /^From mine.safetensors/);

  await page.click('#reset-button');
  await phase(page, 'ready', LONG);
  assert.equal(await text(page, '#model-summary'), 'No model yet.');
}

test('a journey with the test double', (t) => journey(t, 'gpu'));

test('the pretrained model opens in the real worker', { skip: !built && 'web/dist is missing: make web' }, async (t) => {
  const page = await open(t, 'built');
  page.setDefaultTimeout(LONG);
  await phase(page, 'ready', LONG);
  await page.click('#model-pretrained');
  await phase(page, 'loaded', LONG);
  assert.match(await text(page, '#model-summary'), /^From pretrained model: 16 channels, 4 blocks in each group, 64 latent dimensions, images of 32×32 pixels/);
});

test('a journey with the real worker', { skip: !built && 'web/dist is missing: make web' }, (t) => journey(t, 'built'));
