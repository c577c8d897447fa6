// Reads lists of responses as JSON, and writes the messages that `HttpAgent` has after it has read the responses. Each
// response is a list of events. The first one starts a run, and each later one is read by an agent that connects.
import { HttpAgent, runHttpRequest, transformHttpEventStream } from '@ag-ui/client'
import { text } from 'node:stream/consumers'

class Agent extends HttpAgent {
  connect(input) {
    return transformHttpEventStream(runHttpRequest(() => this.fetch(this.url, this.requestInit(input))))
  }
}

const warnings = []
console.warn = (...values) => warnings.push(values.join(' '))
const built = []
for (const { responses, messages } of JSON.parse(await text(process.stdin))) {
  const events = []
  const fetch = async () => {
    const body = responses.shift().map(event => `data: ${JSON.stringify(event)}\n\n`)
    return new Response(body.join(''), { headers: { 'Content-Type': 'text/event-stream' } })
  }
  const agent = new Agent({ url: 'http://localhost/', fetch, initialMessages: messages })
  const subscriber = { onCustomEvent: ({ event }) => events.push(event) }
  await agent.runAgent({}, subscriber)
  while (responses.length) await agent.connectAgent({}, subscriber)
  built.push({ messages: agent.messages, custom: events.map(event => event.metadata.id) })
}
process.stdout.write(JSON.stringify({ built, warnings }))
