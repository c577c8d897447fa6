// Readers of runs with followRun, for the storm of runs (tests/storm_runs/). Arguments: the URL and the number of cables.
// Reads commands as lines of JSON: {do, run}. `follow` begins to follow a run, or begins anew, as a new page does.
// `report` prints the state of the reader, and what it has read to its end.
import { createInterface } from 'node:readline'
import WebSocket from 'ws'
import { createCable, followRun } from '../../reliable_cable/static/reliable_cable/cable.mjs'

const [url, count] = process.argv.slice(2)
const cables = Array.from({ length: Number(count) }, () =>
  createCable(url, {
    protocol: 'actioncable-v1-ext-json',
    websocketImplementation: WebSocket,
    websocketOptions: { origin: 'http://127.0.0.1' },
    reconnectStrategy: () => 20 + Math.random() * 100,
    logLevel: 'error'
  })
)
const readers = {}

function follow(id) {
  readers[id]?.run.close()
  const reader = (readers[id] ??= { ends: [], broken: 0, follows: 0 })
  reader.follows += 1
  let joined = ''
  reader.run = followRun(cables[Math.floor(Math.random() * cables.length)], id, {
    onText(text, added) {
      joined = added === null ? text : joined + added
      if (joined !== text) reader.broken += 1
    },
    onEnd: ({ status, error, text, parts }) => reader.ends.push([status, error, text, parts])
  })
}

function report(id) {
  const { run, ends, broken, follows } = readers[id]
  return { state: run.state, text: run.text, parts: run.parts, ends, broken, follows }
}

const commands = {
  follow,
  report,
  leave(id) {
    const result = report(id)
    readers[id].run.close()
    delete readers[id]
    return result
  },
  cut: () => cables[Math.floor(Math.random() * cables.length)].transport.ws?.terminate()
}

createInterface({ input: process.stdin }).on('line', line => {
  const { do: name, run } = JSON.parse(line)
  process.stdout.write(JSON.stringify(commands[name](run) ?? null) + '\n')
})
