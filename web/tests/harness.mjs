// Headless Chromium with WebGPU on a software adapter, and a server for the built page.
import { existsSync } from 'node:fs';
import path from 'node:path';
import { chromium } from 'playwright-core';
import { serve } from '../serve.mjs';

const FLAGS = [
  '--no-sandbox',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];
/** Chromium offers a software adapter only if asked. */
const SOFTWARE = ['--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader'];
/** A name of this machine under which pages are not a secure context, and so have no WebGPU. */
const INSECURE = 'insecure.test';

const ROOT = path.resolve(import.meta.dirname, '../..');

/** Starts a server and a browser; `adapter: false` for one whose GPU no page may use. */
export async function start({ adapter = true } = {}) {
  const dist = path.join(ROOT, 'web/dist');
  if (!existsSync(path.join(dist, 'engine_bg.wasm'))) throw new Error('web/dist is missing. Build it first: make web');
  const server = await serve([dist, import.meta.dirname]);
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    headless: true,
    args: [...FLAGS, ...(adapter ? SOFTWARE : []), `--host-resolver-rules=MAP ${INSECURE} 127.0.0.1`],
  });
  const { port } = server.address();
  return {
    browser,
    url: `http://127.0.0.1:${port}`,
    insecureUrl: `http://${INSECURE}:${port}`,
    async stop() {
      await browser.close();
      server.closeAllConnections();
      server.close();
    },
  };
}

/** Ends the process of the browser that drives the GPU, as a crash of a driver does. */
export async function loseDevice(browser) {
  const session = await browser.newBrowserCDPSession();
  const { processInfo } = await session.send('SystemInfo.getProcessInfo');
  const { id } = processInfo.find(({ type }) => type === 'GPU');
  process.kill(id, 'SIGKILL');
}

/** The native program. */
export function program() {
  const names = [process.env.VAE_WGPU, ...['release', 'debug'].map((kind) => path.join(ROOT, 'target', kind, 'vae-wgpu'))];
  const found = names.find((name) => name && existsSync(name));
  if (!found) throw new Error('the native program is missing. Build it first: cargo build --release');
  return found;
}
