// Runs the conformance suite of Durable Streams, unmodified, against a server. Prints the results as JSON.
// node durable_conformance.mjs <url> [<pattern of the names of tests>]
import {createRequire} from "node:module"
import {dirname, join} from "node:path"
import {fileURLToPath} from "node:url"
import {startVitest} from "vitest/node"

const here = dirname(fileURLToPath(import.meta.url))
const suite = dirname(createRequire(import.meta.url).resolve("@durable-streams/server-conformance-tests"))
process.env.CONFORMANCE_TEST_URL = process.argv[2]

const vitest = await startVitest("test", [], {
  root: suite,
  include: ["test-runner.js"],
  exclude: [],
  setupFiles: [join(here, "durable_setup.mjs")],
  testNamePattern: process.argv[3],
  reporters: [{}],
  watch: false,
  run: true,
  testTimeout: 30_000,
  pool: "threads",
  server: {deps: {inline: []}},
}, {configFile: false, cacheDir: process.env.CABLE_TEST_CACHE})

const results = []
for (const module of vitest.state.getTestModules()) {
  for (const test of module.children.allTests()) {
    const {state, errors} = test.result()
    results.push({name: test.fullName, state, error: errors?.[0]?.message ?? ""})
  }
}
await vitest.close()
console.log(JSON.stringify(results))
process.exit(0)
