// Helpers of the scenarios. The first argument is the port of the server. Each scenario prints a line of JSON.
import { createHmac } from 'node:crypto'
import { isDeepStrictEqual } from 'node:util'
import WebSocket from 'ws'

export const port = process.argv[2]
export const url = `ws://127.0.0.1:${port}/cable`
export const SECRET = 'a secret that tests can sign with'
export const ORIGIN = 'http://127.0.0.1'
const PATIENCE = 20_000
const run = `${process.argv[3]}-${process.pid}`
let names = 0

/** A WebSocket with the Origin of a page from the same host. */
export class PageWebSocket extends WebSocket {
  constructor(address, protocols) {
    super(address, protocols, { origin: ORIGIN })
  }
}

export const EXTENDED = 'actioncable-v1-ext-json'

/** Return the options of a client that reconnects fast. They are new objects, because a client may change them. */
export const clientOptions = () => ({
  websocketImplementation: WebSocket,
  websocketOptions: { origin: ORIGIN },
  reconnectStrategy: () => 20,
  logLevel: 'error'
})

/** Reset the TCP connection of a cable, without a closing handshake. */
export const cut = cable => cable.transport.ws?.terminate()

/** Return a name that no other scenario uses. */
export const unique = prefix => `${prefix}${run}-${++names}`

/** Make a call (tests/integration/project/calls.py) in the server process. */
export async function call(name, args, kwargs = {}) {
  const response = await fetch(`http://127.0.0.1:${port}/call`, {
    method: 'POST',
    body: JSON.stringify({ call: name, args, kwargs })
  })
  const answer = await response.json()
  if (answer.error) throw new Error(`${name}: ${answer.error}`)
  return answer.result
}

export const broadcast = (stream, data, options) => call('broadcast', [stream, data], options)

/** Sign a stream name (see Protocol: Signed streams). */
export function sign(stream) {
  const encoded = Buffer.from(JSON.stringify(stream)).toString('base64')
  const digest = createHmac('sha256', SECRET).update(encoded).digest('hex')
  return `${encoded}--${digest}`
}

export const range = (first, last) => Array.from({ length: last - first + 1 }, (_, index) => first + index)

export function equal(actual, expected, what) {
  if (!isDeepStrictEqual(actual, expected)) {
    throw new Error(`${what}: ${JSON.stringify(actual)} is not ${JSON.stringify(expected)}`)
  }
}

/** Wait until a condition holds. */
export async function eventually(condition, what) {
  const deadline = Date.now() + PATIENCE
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`timeout while waiting: ${typeof what === 'function' ? what() : what}`)
    await new Promise(resolve => setTimeout(resolve, 5))
  }
}

/** Run all scenarios at the same time. The process fails if one of them fails. */
export async function runAll(scenarios) {
  const outcomes = await Promise.allSettled(
    Object.entries(scenarios).map(async ([name, scenario]) => {
      try {
        await scenario()
        console.log(JSON.stringify({ scenario: name, ok: true }))
      } catch (error) {
        console.log(JSON.stringify({ scenario: name, ok: false, error: String(error?.stack ?? error) }))
        throw error
      }
    })
  )
  process.exit(outcomes.every(outcome => outcome.status === 'fulfilled') ? 0 : 1)
}
