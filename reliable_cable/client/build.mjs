// Bundles cable.js into the folder that is given as the argument. The folder then contains:
//   cable.js      for a plain <script>; the global `AnyCable` has its exports
//   cable.mjs     an ES module
//   cable.d.mts   the TypeScript types of the ES module
//   anycable.d.ts the types of the bundled packages, which cable.d.mts uses
//   LICENSES.txt  the licences of all bundled packages
import { mkdir, readdir, readFile, rename, writeFile } from 'node:fs/promises'
import { existsSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

import { build } from 'esbuild'

const here = path.dirname(fileURLToPath(import.meta.url))
const [target] = process.argv.slice(2)
if (!target) throw new Error('usage: node build.mjs FOLDER')

const MIT = `Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation
files (the "Software"), to deal in the Software without restriction, including without limitation the rights to use,
copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom
the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
`

// Returns the folders of all bundled packages.
function packageFolders(metafile) {
  const folders = Object.keys(metafile.inputs)
    .map(input => input.match(/^.*node_modules\/(?:@[^/]+\/)?[^/]+/)?.[0])
    .filter(Boolean)
  return [...new Set(folders)].sort().map(folder => path.join(here, folder))
}

async function readPackage(folder) {
  return JSON.parse(await readFile(path.join(folder, 'package.json'), 'utf8'))
}

// Returns the licence text of a package. Some packages name their licence only in package.json.
async function licence(folder) {
  const file = ['LICENSE', 'LICENSE.md', 'LICENSE.txt', 'LICENCE'].map(name => path.join(folder, name)).find(existsSync)
  if (file) return readFile(file, 'utf8')
  const { name, license, author } = await readPackage(folder)
  if (license !== 'MIT') throw new Error(`${name} has no licence file, and its licence is ${license}`)
  return `The MIT License (MIT)\n\nCopyright (c) ${author.name ?? author}\n\n${MIT}`
}

async function licences(folders) {
  const parts = []
  for (const folder of folders) {
    const { name, version } = await readPackage(folder)
    parts.push(`${name} ${version}\n${'='.repeat(name.length + version.length + 1)}\n\n${(await licence(folder)).trim()}\n`)
  }
  return parts.join('\n\n')
}

// Returns the types of a package as ambient modules. So they are found without the package, wherever the bundle is.
async function ambientTypes(folder) {
  const { name } = await readPackage(folder)
  const files = (await readdir(folder, { recursive: true })).filter(file => /\.d\.ts$/.test(file) && !/testing/.test(file))
  const modules = files.sort().map(async file => {
    const module = path.posix.join(name, file.replaceAll(path.sep, '/').replace(/\.d\.ts$/, '.js'))
    // Browsers have a WebSocket of their own, so the package ws is not needed.
    const types = (await readFile(path.join(folder, file), 'utf8')).replace("import WebSocket from 'ws'\n", '')
    const absolute = types.replace(/(?<=from ')\.[^']*/g, target => path.posix.join(path.posix.dirname(module), target))
    return `declare module '${module}' {\n${absolute.replaceAll('export declare ', 'export ')}}\n`
  })
  return [...(await Promise.all(modules)), `declare module '${name}' {\n  export * from '${name}/index.js'\n}\n`].join('')
}

const { version } = await readPackage(path.join(here, 'node_modules/@anycable/web'))
const options = {
  absWorkingDir: here,
  entryPoints: ['cable.js'],
  bundle: true,
  minify: true,
  metafile: true,
  write: false,
  platform: 'browser',
  target: 'es2020',
  banner: { js: `/*! @anycable/web ${version}; licences: LICENSES.txt beside this file */` }
}
const script = await build({ ...options, format: 'iife', globalName: 'AnyCable' })
const module = await build({ ...options, format: 'esm' })

const folders = packageFolders(script.metafile)
const files = {
  'LICENSES.txt': await licences(folders),
  'anycable.d.ts': (await Promise.all(folders.map(ambientTypes))).join(''),
  'cable.d.mts': await readFile(path.join(here, 'cable.d.mts'), 'utf8'),
  'cable.mjs': module.outputFiles[0].text,
  'cable.js': script.outputFiles[0].text
}
await mkdir(target, { recursive: true })
for (const [name, content] of Object.entries(files)) {
  // The file is renamed into place, so that a running server never serves an incomplete file.
  const draft = path.join(target, `.${name}.${process.pid}`)
  await writeFile(draft, content)
  await rename(draft, path.join(target, name))
}
