// Bundles chat_page.mjs and the packages that it imports into one file:
// `node bundle_chat_page.mjs <output> <use_conversation.js>`.
import { build } from 'esbuild'

await build({
  entryPoints: ['chat_page.mjs'],
  outfile: process.argv[2],
  bundle: true,
  alias: { 'use-conversation': process.argv[3] },
  nodePaths: ['node_modules'],
  format: 'iife',
  target: 'es2022',
  define: { 'process.env.NODE_ENV': '"production"' },
  logLevel: 'error'
})
