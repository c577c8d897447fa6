// Copies the files that pages load, unmodified, from the npm packages into the static files of the demo.
import { cp, mkdir } from 'node:fs/promises'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const FILES = {
  'turbo.js': '@hotwired/turbo/dist/turbo.es2017-esm.js',
  'turbo-stream': '@anycable/turbo-stream',
  'htmx.js': 'htmx.org/dist/htmx.min.js',
  'htmx-sse.js': 'htmx-ext-sse/dist/sse.min.js',
  'htmx4.js': 'htmx4/dist/htmx.min.js',
  'htmx4-sse.js': 'htmx4/dist/ext/hx-sse.min.js',
  'marked.js': 'marked/lib/marked.esm.js',
  'purify.js': 'dompurify/dist/purify.es.mjs'
}

const here = path.dirname(fileURLToPath(import.meta.url))
const target = path.join(here, '../chat/static/npm')
await mkdir(target, { recursive: true })
for (const [name, source] of Object.entries(FILES)) {
  await cp(path.join(here, 'node_modules', source), path.join(target, name), { recursive: true })
}
// The lock file is copied last. It tells the versions of the copied files.
await cp(path.join(here, 'package-lock.json'), path.join(target, 'package-lock.json'))
