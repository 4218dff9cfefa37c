// `node web/serve.mjs [FOLDER [PORT]]` serves static files on this machine, by default web/dist on port 8080. Browsers have WebGPU only on
// https and on localhost.
import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import http from 'node:http';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const TYPES = {
  '.css': 'text/css',
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript',
  '.json': 'application/json',
  '.png': 'image/png',
  '.svg': 'image/svg+xml',
  '.wasm': 'application/wasm',
};

/** Returns the file of a request in the first of the folders that has it. */
async function find(folders, url) {
  const name = decodeURIComponent(new URL(url, 'http://localhost').pathname);
  for (const folder of folders) {
    let file = path.join(folder, name);
    if (file !== folder && !file.startsWith(folder + path.sep)) continue;
    let found = await stat(file).catch(() => undefined);
    if (found?.isDirectory()) {
      file = path.join(file, 'index.html');
      found = await stat(file).catch(() => undefined);
    }
    if (found?.isFile()) return { file, size: found.size };
  }
  return undefined;
}

/** Serves folders, and resolves to the server once it listens. Port 0 takes any that is free. */
export function serve(folders, port = 0) {
  const roots = folders.map((folder) => path.resolve(folder));
  const server = http.createServer(async (request, response) => {
    const found = await find(roots, request.url).catch(() => undefined);
    const allowed = request.method === 'GET' || request.method === 'HEAD';
    if (!found || !allowed) {
      response.writeHead(found ? 405 : 404).end();
      return;
    }
    const type = TYPES[path.extname(found.file)] ?? 'application/octet-stream';
    response.writeHead(200, { 'content-type': type, 'content-length': found.size, 'cache-control': 'no-store' });
    if (request.method === 'HEAD') response.end();
    else createReadStream(found.file).on('error', () => response.destroy()).pipe(response);
  });
  return new Promise((resolve, reject) => {
    server.on('error', reject).listen(port, '127.0.0.1', () => resolve(server));
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [folder = path.join(import.meta.dirname, 'dist'), port = '8080'] = process.argv.slice(2);
  if (!(await stat(path.join(folder, 'index.html')).catch(() => undefined))) {
    console.error(`error: ${folder} has no index.html. Build the page first: make web`);
    process.exit(1);
  }
  try {
    await serve([folder], Number(port));
    console.log(`http://localhost:${port}`);
  } catch (error) {
    console.error(`error: cannot listen on port ${port}: ${error.message}`);
    process.exit(1);
  }
}
