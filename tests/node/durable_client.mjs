// Writes and reads durable streams with the npm client, unmodified. Prints what it has read as JSON.
// node durable_client.mjs <folder of event_streams.js> <URL to write to> <URL to read from> <id of a run>
import {DurableStream, IdempotentProducer, stream} from "@durable-streams/client"
import {join} from "node:path"
import {pathToFileURL} from "node:url"

const [folder, write, read, run] = process.argv.slice(2)
const page = await import(pathToFileURL(join(folder, "event_streams.js")))
const headers = JSON.parse(process.env.CABLE_TEST_HEADERS)
const name = crypto.randomUUID()

async function all(readable) {
  const items = []
  for await (const item of readable) items.push(item)
  return items
}

async function follow(url, live, offset = "-1") {
  const response = await stream({url, headers, live, offset})
  const items = await all(response.jsonStream())
  return {items, closed: response.streamClosed}
}

const run_events = follow(`${read}/${run}/durable`, "sse")
const writer = await DurableStream.create({url: `${write}/durable/${name}`, headers, contentType: "application/json"})
const readers = ["sse", "long-poll", true].map(live => follow(`${read}/durable/${name}`, live))

const producer = new IdempotentProducer(writer, "producer", {lingerMs: 1, maxBatchBytes: 200, onError: error => { throw error }})
for (let number = 0; number < 60; number += 1) producer.append(JSON.stringify({number}))
await producer.flush()
const half = await stream({url: `${read}/durable/${name}`, headers, live: false})
const before = await half.json()
const resumed = follow(`${read}/durable/${name}`, "sse", half.offset)
await writer.append(JSON.stringify({number: 60}))
await producer.close(JSON.stringify({number: 61}))

const bytes = await DurableStream.create({url: `${write}/durable/${name}/bytes`, headers, contentType: "image/png"})
await bytes.append(Uint8Array.from({length: 256}, (_, byte) => byte))
await bytes.close()
const image = await (await stream({url: `${read}/durable/${name}/bytes`, headers, live: "sse"})).body()

const events = []
await page.write(`${write}/durable/${name}/events`, headers, [{a: 1}, {a: 2}])
await page.read(`${read}/durable/${name}/events`, headers, event => events.push(event))

const after = (await resumed).items
console.log(JSON.stringify({
  readers: await Promise.all(readers),
  resumed: [...before, ...after],
  image: [...image],
  events,
  run: await run_events,
}))
