/** From the first look at the page to a trained model. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { inWorker, look, open, phase, quick, ready, requests, trained } from './harness.mjs';

const text = (page, selector) => page.locator(selector).innerText();

test('the page opens with a GPU, images and a forecast', async (t) => {
  const page = await ready(t);
  assert.match(await text(page, '#gpu'), /Your GPU: Apple M3/);
  assert.match(await text(page, '#data-summary'), /Built-in shapes\s+10,000 images of 32×32 pixels, colour; 1,000 of them are held out/);
  assert.match(await text(page, '#forecast'), /Parameters\s+[\d,]+\s+GPU memory\s+\d+ MiB/);
  assert.match(await text(page, '#forecast-steps'), /^3,384 \(282 an epoch\)$/);
  assert.equal(await page.locator('#status').innerText(), 'Ready to learn from 10,000 images.');
  assert.ok(await page.locator('#explore-tools').isHidden());
  assert.ok(await page.locator('#model-download').isDisabled());
  await page.click('#gpu summary');
  assert.match(await text(page, '#gpu'), /Largest buffer\s+4.0 GiB/);
  await page.click('#gpu summary');
  await look(page, 'ready');
});

test('one button trains with the defaults, pauses and continues', async (t) => {
  const page = await ready(t);
  await inWorker(page, (double) => {
    double.compileDelay = 300;
    double.pace = { delay: 30, steps: 6 };
  });
  await page.click('#train-button');
  await phase(page, 'compiling');
  assert.equal(await text(page, '#train-button'), 'Compiling…');
  await page.waitForFunction(() => /of 24 programs/.test(document.querySelector('#progress-left').textContent));
  await look(page, 'compiling', { target: '#train' });
  await inWorker(page, (double) => (double.compileDelay = 1));
  await phase(page, 'training');
  const [{ settings }] = await requests(page, 'start');
  assert.deepEqual(settings, { channels: 16, blocks: 1, latentDim: 64, batchSize: 32, epochs: 12, learningRate: 0.005, likelihood: 'optimal', seed: 0 });

  await page.waitForFunction(() => document.querySelectorAll('#epoch-rows tr').length > 0);
  assert.match(await text(page, '#progress-left'), /^Step [\d,]+ of 3,384$/);
  assert.match(await text(page, '#progress-right'), /left$/);
  assert.match(await text(page, '#tile-rate'), /^2,\d{3}$/);
  assert.match(await page.title(), /^\d+ % – vae-wgpu$/);
  assert.match(await text(page, '#advice'), /latent dimensions carry less/);
  assert.ok(await page.locator('#channels').isDisabled());
  assert.match(await page.locator('#samples').getAttribute('aria-label'), /^Samples after \d+ steps: 16 images$/);
  await look(page, 'training');

  await page.click('#train-button');
  await phase(page, 'paused');
  const before = await text(page, '#progress-left');
  await page.waitForTimeout(200);
  assert.equal(await text(page, '#progress-left'), before);
  await look(page, 'paused', { target: '#train' });
  await page.click('#train-button');
  await phase(page, 'training');
  await page.waitForFunction((old) => document.querySelector('#progress-left').textContent !== old, before);
});

test('a run ends with all epochs listed, and can be trained again', async (t) => {
  const page = await trained(t, 'gpu');
  assert.equal(await text(page, '#status'), 'Finished: 2 epochs. Explore the model below.');
  assert.match(await text(page, '#progress-left'), /^Step 58 of 58$/);
  await page.click('#epochs summary');
  assert.deepEqual(await page.locator('#epoch-rows tr td:first-child').allInnerTexts(), ['2', '1']);
  await page.check('input[name=curve][value=kl]', { force: true });
  assert.match(await page.locator('#chart').getAttribute('aria-label'), /^KL by step: from 0.0\d+ at step 1 to 0.0\d+ at step 58$/);
  assert.ok(await page.locator('#key-val').isHidden());
  await page.hover('#chart', { position: { x: 300, y: 100 } });
  assert.match(await page.locator('#chart-readout').innerText(), /^step \d+: 0\.0\d+, average 0\.0\d+$/);
  await look(page, 'finished');
});

test('a model that was not downloaded is not dropped without a question', async (t) => {
  const page = await trained(t, 'gpu');
  await page.click('#train-button');
  assert.ok(await page.locator('#discard').isVisible());
  await page.setViewportSize({ width: 390, height: 844 });
  await look(page, 'discard', { target: '#discard' });
  await page.keyboard.press('Escape');
  await page.waitForSelector('#discard', { state: 'hidden' });
  assert.equal((await requests(page, 'reset')).length, 0);

  await page.click('#reset-button');
  const [download] = await Promise.all([page.waitForEvent('download'), page.click('#discard button[value=download]')]);
  assert.equal(download.suggestedFilename(), 'model.safetensors');
  await phase(page, 'ready');
  assert.equal(await text(page, '#tile-total'), '–');
  assert.match(await page.locator('#samples').getAttribute('aria-label'), /none yet/);
});

test('a downloaded model is dropped without a question', async (t) => {
  const page = await trained(t, 'gpu');
  await Promise.all([page.waitForEvent('download'), page.click('#download-button')]);
  assert.match(await text(page, '#model-summary'), / Downloaded\.$/);
  await page.click('#train-button');
  await phase(page, 'training');
});

test('leaving the page with an unsaved model asks', async (t) => {
  const page = await trained(t, 'gpu');
  const dialogs = [];
  page.on('dialog', async (dialog) => {
    dialogs.push(dialog.type());
    await dialog.dismiss();
  });
  await page.close({ runBeforeUnload: true });
  await page.waitForTimeout(300);
  assert.deepEqual(dialogs, ['beforeunload']);
  await Promise.all([page.waitForEvent('download'), page.click('#download-button')]);
  await Promise.all([page.waitForEvent('close'), page.close({ runBeforeUnload: true })]);
  assert.deepEqual(dialogs, ['beforeunload']);
});

test('settings: sizes, checks and the forecast', async (t) => {
  const page = await ready(t);
  const parameters = await text(page, '#forecast-parameters');
  await page.check('input[name=preset][value=large]', { force: true });
  await page.waitForFunction((old) => document.querySelector('#forecast-parameters').textContent !== old, parameters);
  await page.click('#settings-details summary');
  assert.equal(await page.inputValue('#batchSize'), '128');
  await page.fill('#latentDim', '100');
  assert.equal(await page.locator('input[name=preset]:checked').count(), 0);
  assert.equal(await text(page, '#preset-note'), 'Your own settings.');

  await page.fill('#channels', '7');
  assert.equal(await text(page, '#channels-error'), 'Enter an even number from 2 to 256.');
  await page.fill('#learningRate', '');
  assert.equal(await text(page, '#learningRate-error'), 'Enter a number from 0.00001 to 0.1.');
  assert.ok(await page.locator('#train-button').isDisabled());
  await look(page, 'invalid', { target: '.setup' });

  await page.fill('#channels', '32');
  await page.fill('#learningRate', '0.01');
  await page.fill('#batchSize', '600');
  await page.waitForFunction(() => /5.2 GiB.*Choose a smaller batch/.test(document.querySelector('#forecast-error').textContent));
  assert.equal(await text(page, '#forecast-memory'), '–');
  assert.ok(await page.locator('#train-button').isDisabled());
  await look(page, 'too-large', { target: '.setup' });
  await page.fill('#batchSize', '64');
  await page.waitForFunction(() => !document.querySelector('#train-button').disabled);
  await page.click('#train-button');
  await phase(page, 'training');
  const [{ settings }] = await requests(page, 'start');
  assert.equal(settings.latentDim, 100);
});

test('only the last of several changes is shown in the forecast', async (t) => {
  const page = await ready(t);
  await page.click('#settings-details summary');
  for (const channels of [2, 4, 8, 12]) await page.fill('#channels', String(channels));
  await page.waitForFunction(() => !document.querySelector('#train-button').disabled);
  assert.deepEqual((await requests(page, 'forecast')).slice(1).map(({ settings }) => settings.channels), [12]);
});

test('the keyboard alone trains, pauses and changes tabs', async (t) => {
  const page = await ready(t);
  await page.keyboard.press('Tab');
  assert.equal(await page.evaluate(() => document.activeElement.className), 'skip');
  await page.keyboard.press('Enter');
  await page.keyboard.press('Tab');
  assert.equal(await page.evaluate(() => document.activeElement.id), 'train-button');
  const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
  assert.equal(outline, 'solid');
  await quick(page, 40);
  await page.focus('#train-button');
  await page.keyboard.press('Enter');
  await phase(page, 'training');
  assert.equal(await page.evaluate(() => document.activeElement.id), 'train-button');
  await page.waitForFunction(() => /^Step/.test(document.querySelector('#progress-left').textContent));
  await page.keyboard.press('Space');
  await phase(page, 'paused');
  assert.equal(await page.evaluate(() => document.activeElement.id), 'train-button');

  await page.focus('input[name=curve]:checked');
  await page.keyboard.press('ArrowRight');
  assert.equal(await page.locator('input[name=curve]:checked').inputValue(), 'recon');
  await page.focus('#tab-dials');
  await page.keyboard.press('End');
  assert.ok(await page.locator('#panel-draw').isVisible());
  await page.keyboard.press('ArrowRight');
  assert.ok(await page.locator('#panel-dials').isVisible());
  await page.keyboard.press('Tab');
  await page.keyboard.press('Tab');
  await page.keyboard.press('Tab');
  await page.keyboard.press('Tab');
  const before = await page.evaluate(() => [document.activeElement.type, document.activeElement.value]);
  assert.equal(before[0], 'range');
  await page.keyboard.press('ArrowRight');
  assert.notEqual(await page.evaluate(() => document.activeElement.value), before[1]);
});

test('measurements change without moving the layout', async (t) => {
  const page = await ready(t);
  await quick(page, 40);
  await page.click('#train-button');
  await page.waitForFunction(() => /^Step/.test(document.querySelector('#progress-left').textContent));
  const places = () => page.evaluate(() => ['#progress', '.trio', '#tiles', '#chart', '.setup', '#tile-kl'].map((selector) => {
    const { x, y, width, height } = document.querySelector(selector).getBoundingClientRect();
    return [selector, x, y, width, height].join(' ');
  }));
  const before = await places();
  const step = await text(page, '#progress-left');
  await page.waitForFunction((old) => document.querySelector('#progress-left').textContent !== old, step);
  await page.waitForTimeout(300);
  assert.deepEqual(await places(), before);
});

test('the page opens in a software driver with the tiny model', async (t) => {
  const page = await ready(t, 'software');
  assert.match(await text(page, '#gpu'), /No GPU, but a software driver: SwiftShader\s+It computes on the CPU/);
  assert.equal(await page.locator('input[name=preset]:checked').inputValue(), 'tiny');
  assert.match(await text(page, '#data-summary'), /1,000 images/);
  await look(page, 'software', { target: '.hero' });
});

test('nothing leaves the machine: the page can connect to its own server only', async (t) => {
  const page = await open(t);
  assert.match(await text(page, '.hero'), /variational autoencoder[^]*Nothing leaves this machine/);
  const outside = await page.evaluate(() => performance.getEntriesByType('resource').map(({ name }) => name).filter((name) => !name.startsWith(location.origin) && !name.startsWith('data:')));
  assert.deepEqual(outside, []);
  const directive = await page.evaluate(() => new Promise((resolve) => {
    document.addEventListener('securitypolicyviolation', ({ effectiveDirective }) => resolve(effectiveDirective));
    fetch('http://localhost:9/').catch(() => {});
  }));
  assert.equal(directive, 'connect-src');
  page.expected = /Content Security Policy/;
});
