/** Images by drop and by file picker. */

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { drop, file, inWorker, look, phase, png, quick, ready, requests } from './harness.mjs';

const summary = (page) => page.locator('#data-summary').innerText();

/** Images of 60×40 pixels: a red square of 40×40 between green bars, which the crop removes. */
const wide = (n) => Array.from({ length: n }, (_, i) => png(`wide-${i}.png`, 60, 40, (x) => (x < 10 || x >= 50 ? [0, 255, 0] : [200, i % 256, 0])));

test('dropped images are cropped to their central square and resized', async (t) => {
  const page = await ready(t);
  await drop(page, wide(20));
  await page.waitForFunction(() => document.querySelector('#data-summary').textContent.includes('Your images'));
  assert.match(await summary(page), /20 images of 32×32 pixels, colour; 2 of them are held out/);
  assert.match(await summary(page), /With so few images the model mostly repeats them/);
  const [request] = await requests(page, 'data').then((all) => all.slice(-1));
  const { width, height, channels, bytes, first } = request;
  assert.deepEqual({ width, height, channels, bytes, first }, { width: 32, height: 32, channels: 3, bytes: 20 * 32 * 32 * 4, first: [200, 0, 0, 255] });
  assert.ok(await page.locator('[data-kind=pictures]').isVisible());
  assert.ok(await page.locator('[data-kind=shapes]').isHidden());
  await look(page, 'own-images', { target: '.setup' });

  await page.check('input[name=size][value="64"]', { force: true });
  await page.waitForFunction(() => document.querySelector('#data-summary').textContent.includes('64×64'));
  const [again] = await requests(page, 'data').then((all) => all.slice(-1));
  assert.equal(again.bytes, 20 * 64 * 64 * 4);
});

test('grey images have one channel, and broken files are named', async (t) => {
  const page = await ready(t);
  const grey = Array.from({ length: 20 }, (_, i) => png(`grey-${i}.png`, 8, 8, (x, y) => Array(3).fill((x * 20 + y * 5 + i) % 256)));
  await page.setInputFiles('#pick-images', [...grey, { name: 'broken.png', mimeType: 'image/png', buffer: Buffer.from('no image') }]);
  await page.waitForFunction(() => document.querySelector('#data-summary').textContent.includes('greyscale'));
  assert.match(await summary(page), /20 images of 32×32 pixels, greyscale/);
  assert.match(await summary(page), /Left out, because the browser cannot read it: broken.png\./);
  const [request] = await requests(page, 'data').then((all) => all.slice(-1));
  assert.equal(request.channels, 1);
});

test('too few images, and files that are no images, are refused', async (t) => {
  const page = await ready(t);
  await page.setInputFiles('#pick-images', wide(3));
  await page.waitForSelector('#data-error:visible');
  assert.equal(await page.locator('#data-error').innerText(), '3 images: at least 16 are needed. Choose more.');
  assert.match(await summary(page), /Built-in shapes/);
  await page.setInputFiles('#pick-images', [{ name: 'notes.txt', mimeType: 'text/plain', buffer: Buffer.from('hello') }]);
  assert.match(await page.locator('#data-error').innerText(), /^None of these files is an image/);
  await drop(page, [file('notes.txt', 'hello', 'text/plain')]);
  assert.match(await page.locator('.notice').innerText(), /These files are no images/);
  await look(page, 'refused');
});

test('an archive of CIFAR-10 is handed over whole', async (t) => {
  const page = await ready(t);
  await drop(page, [file('cifar-10-binary.tar.gz', [0x1f, 0x8b, 8, 0, 1, 2, 3])]);
  await page.waitForFunction(() => document.querySelector('#data-summary').textContent.includes('CIFAR-10'));
  assert.match(await summary(page), /50,000 images of 32×32 pixels, colour; 5,000 of them/);
  const [request] = await requests(page, 'data').then((all) => all.slice(-1));
  assert.deepEqual([request.kind, request.name, request.bytes], ['cifar', 'cifar-10-binary.tar.gz', 7]);

  await page.setInputFiles('#pick-cifar', file('notes.bin', 'hello'));
  await page.waitForSelector('#data-error:visible');
  assert.match(await page.locator('#data-error').innerText(), /notes.bin: 5 bytes are not records/);
  assert.match(await summary(page), /CIFAR-10/);
  await look(page, 'cifar', { target: '.setup' });
});

test('reading many images shows progress and can be stopped', async (t) => {
  const page = await ready(t);
  await page.evaluate(() => {
    const decode = window.createImageBitmap;
    window.createImageBitmap = async (...image) => {
      await new Promise((done) => setTimeout(done, 200));
      return decode(...image);
    };
  });
  await page.setInputFiles('#pick-images', wide(40));
  await page.waitForFunction(() => /Reading \d+ of 40 images/.test(document.querySelector('#data-count').textContent));
  await page.click('#data-cancel');
  await page.waitForSelector('#data-progress', { state: 'hidden' });
  assert.match(await summary(page), /Built-in shapes/);
  assert.equal((await requests(page, 'data')).length, 1);
});

test('images cannot be replaced while a model trains', async (t) => {
  const page = await ready(t);
  await quick(page, 40);
  await inWorker(page, (double) => (double.pace = { delay: 50, steps: 1 }));
  await page.click('#train-button');
  await phase(page, 'training');
  await drop(page, wide(20));
  assert.match(await page.locator('.notice').innerText(), /A model is being trained. Reset it before/);
  await page.click('.notice .close');
  assert.equal(await page.locator('.notice').count(), 0);
  assert.equal((await requests(page, 'data')).length, 2);
  assert.ok(await page.locator('#use-shapes').isDisabled());
});
