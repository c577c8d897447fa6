// Readers and producers of durable streams with the unmodified npm client, for the storm of runs (tests/storm_runs/).
// Arguments: the headers of all requests, as JSON. Reads commands as lines of JSON, with the key `do`.
// `read` begins to read a stream, or reads on as a client that comes back. `produce` writes numbers to a stream.
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { DurableStream, IdempotentProducer, stream } from '@durable-streams/client'

const headers = JSON.parse(process.argv[2])
const backoffOptions = { initialDelay: 50, maxDelay: 500, multiplier: 1.3 }
const readers = {}
const producers = {}

async function read({ key, url, live, anew }) {
  const reader = (readers[key] ??= { visits: 0, losses: 0, errors: [] })
  reader.leave?.()
  if (anew || !reader.offset) Object.assign(reader, { offset: '-1', items: [] })
  const visit = new AbortController()
  Object.assign(reader, { closed: false, leave: () => visit.abort(), visits: reader.visits + 1 })
  while (!visit.signal.aborted && !reader.closed) {
    try {
      const options = { url, live, headers, backoffOptions, signal: visit.signal, offset: reader.offset }
      const response = await stream({ ...options, sseResilience: { logWarnings: false } })
      response.subscribeJson(({ items, offset, streamClosed }) => {
        // A connection that is lost before the offset arrives is repeated from the last offset.
        if (visit.signal.aborted || (items.length && offset === reader.offset)) return
        reader.items.push(...items)
        reader.offset = offset
        reader.closed = streamClosed
      })
      await response.closed
    } catch (error) {
      if (visit.signal.aborted) return
      reader.losses += 1
      if (error.status === 410) Object.assign(reader, { offset: '-1', items: [] })
      else if ((error.status >= 400 && error.status < 500) || error.code === 'PARSE_ERROR') reader.errors.push(String(error))
      await sleep(50)
    }
  }
}

// The producer of the client does not repeat its requests by itself.
async function send(...request) {
  for (;;) {
    try {
      const response = await fetch(...request)
      if (response.status < 500) return response
    } catch {}
    await sleep(50 + 200 * Math.random())
  }
}

async function produce({ key, url, count, pause }) {
  const state = (producers[key] = { done: false, errors: [] })
  const target = new DurableStream({ url, headers, contentType: 'application/json', backoffOptions })
  const onError = error => state.errors.push(String(error))
  const producer = new IdempotentProducer(target, 'npm', { lingerMs: 20, headers, fetch: send, onError })
  Object.defineProperty(state, 'offset', { enumerable: true, get: () => producer.lastSuccessfulOffset })
  for (let number = 0; number < count; number += 1) {
    producer.append(JSON.stringify(['npm', number]))
    await sleep(1000 * pause)
  }
  await producer.flush()
  state.done = true
}

const commands = {
  read: command => void read(command),
  produce: command => void produce(command).catch(error => producers[command.key].errors.push(String(error))),
  leave: ({ key }) => readers[key].leave(),
  report: ({ key }) => ({ ...readers[key], items: readers[key].closed ? readers[key].items : readers[key].items.length }),
  produced: ({ key }) => producers[key],
  forget: ({ key }) => {
    readers[key].leave()
    delete readers[key]
  }
}

createInterface({ input: process.stdin }).on('line', line => {
  const command = JSON.parse(line)
  process.stdout.write(JSON.stringify(commands[command.do](command) ?? null) + '\n')
})
