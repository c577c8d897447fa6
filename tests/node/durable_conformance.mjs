// Runs the conformance suite of Durable Streams, unmodified, against a server. Prints the results as JSON.
// node durable_conformance.mjs <url> <folder for a cache> [<pattern of the names of tests>]
import {dirname} from "node:path"
import {fileURLToPath} from "node:url"
import {startVitest} from "vitest/node"

process.env.CONFORMANCE_TEST_URL = process.argv[2]

const vitest = await startVitest("test", [], {
  root: dirname(fileURLToPath(import.meta.url)),
  include: ["durable_conformance.test.mjs"],
  setupFiles: ["durable_setup.mjs"],
  testNamePattern: process.argv[4],
  reporters: [{}],
  watch: false,
  run: true,
  testTimeout: 30_000,
  // Some tests measure times, and may fail on a busy machine.
  retry: 4,
  pool: "threads",
}, {configFile: false, cacheDir: process.argv[3]})

const results = []
for (const module of vitest.state.getTestModules()) {
  for (const test of module.children.allTests()) {
    const {state, errors} = test.result()
    results.push({name: test.fullName, state, error: errors?.at(-1)?.message ?? ""})
  }
}
await vitest.close()
console.log(JSON.stringify(results))
process.exit(0)
