// Scenarios of unmodified clients whose sockets anycable-go serves in front of Django. The second argument is the port
// of anycable-go's HTTP broadcast adapter.
import { createHmac } from 'node:crypto'
import { createCable } from '@anycable/core'
import WebSocket from 'ws'
import { equal, eventually, ORIGIN, PageWebSocket, range, runAll, SECRET, unique, url } from './harness.mjs'

globalThis.addEventListener ??= () => {}
globalThis.removeEventListener ??= () => {}
globalThis.document ??= { visibilityState: 'visible' }

const { default: ActionCable } = await import('@rails/actioncable')
ActionCable.adapters.WebSocket = PageWebSocket

const KEY = createHmac('sha256', SECRET).update('broadcast-cable').digest('hex')

async function broadcast(stream, data) {
  const response = await fetch(`http://127.0.0.1:${process.argv[3]}/_broadcast`, {
    method: 'POST',
    headers: { Authorization: `Bearer ${KEY}` },
    body: JSON.stringify({ stream, data: JSON.stringify(data) })
  })
  equal(response.status, 201, 'the status of a broadcast')
}

const open = protocol =>
  createCable(url, {
    protocol,
    websocketImplementation: WebSocket,
    websocketOptions: { origin: ORIGIN },
    reconnectStrategy: () => 20,
    logLevel: 'error'
  })

async function subscribe(cable, name, params) {
  const channel = cable.subscribeTo(name, params)
  channel.messages = []
  channel.connects = []
  channel.on('message', message => channel.messages.push(message))
  channel.on('connect', event => channel.connects.push(event))
  await channel.ensureSubscribed()
  return channel
}

const numbers = channel => channel.messages.map(message => message.n)

const common = protocol => ({
  async performs() {
    const cable = open(protocol)
    const channel = await subscribe(cable, 'EchoChannel', { room: 7 })
    await channel.perform('echo', { text: 'hi' })
    await channel.perform('aecho', { text: 'again' })
    await eventually(() => channel.messages.length === 2, 'two answers')
    equal(channel.messages[0], { echo: { text: 'hi', action: 'echo' }, params: { room: 7 } }, 'the answer')
    cable.disconnect()
  },

  async isRejected() {
    const cable = open(protocol)
    const channel = cable.subscribeTo('RejectingChannel', { stream: unique('rejected') })
    const error = await channel.ensureSubscribed().catch(({ name }) => name)
    equal(error, 'SubscriptionRejectedError', 'the error')
    cable.disconnect()
  },

  async streams() {
    const cable = open(protocol)
    const stream = unique('stream')
    const [first, second] = [
      await subscribe(cable, 'StreamChannel', { streams: [stream] }),
      await subscribe(cable, 'GreetingChannel', { stream })
    ]
    for (const n of range(1, 20)) await broadcast(stream, { n })
    await eventually(() => first.messages.length === 20 && second.messages.length === 22, 'all messages')
    equal(numbers(first), range(1, 20), 'the messages')
    cable.disconnect()
  },

  async keepsItsState() {
    const cable = open(protocol)
    const channel = await subscribe(cable, 'AuditedChannel', { audit: unique('audit') })
    for (const count of range(1, 3)) {
      await channel.perform('increment')
      await eventually(() => channel.messages.length === count, 'the answer')
    }
    equal(channel.messages, [{ count: 1 }, { count: 2 }, { count: 3 }], 'the counts')
    cable.disconnect()
  }
})

const named = (prefix, scenarios) =>
  Object.fromEntries(Object.entries(scenarios).map(([name, scenario]) => [`${prefix} ${name}`, scenario]))

await runAll({
  ...named('extended', common('actioncable-v1-ext-json')),
  ...named('base', common('actioncable-v1-json')),

  async 'extended receives what it missed, and keeps its state'() {
    const cable = open('actioncable-v1-ext-json')
    const stream = unique('stream')
    const channel = await subscribe(cable, 'StreamChannel', { streams: [stream] })
    await broadcast(stream, { n: 1 })
    await eventually(() => channel.messages.length === 1, 'a message')
    cable.transport.ws.terminate()
    await broadcast(stream, { n: 2 })
    // anycable-go may send a message twice, in the history and as a live message.
    await eventually(() => channel.messages.length >= 2, () => `${numbers(channel)}`)
    equal(numbers(channel).slice(0, 2), [1, 2], 'the messages')
    cable.disconnect()
  },

  async 'extended whispers'() {
    const [ann, bob] = [open('actioncable-v1-ext-json'), open('actioncable-v1-ext-json')]
    const room = unique('room')
    const atAnn = await subscribe(ann, 'RoomChannel', { room })
    const atBob = await subscribe(bob, 'RoomChannel', { room })
    await atAnn.whisper({ typing: true })
    await eventually(() => atBob.messages.length === 1, 'the whisper')
    equal([atBob.messages, atAnn.messages], [[{ typing: true }], []], 'whispers skip their sender')
    ann.disconnect()
    bob.disconnect()
  },

  async 'rails subscribes, performs and streams'() {
    const consumer = ActionCable.createConsumer(url)
    const stream = unique('stream')
    const seen = []
    let connected = 0
    const subscription = consumer.subscriptions.create(
      { channel: 'StreamChannel', streams: [stream] },
      { connected: () => (connected += 1), received: message => seen.push(message) }
    )
    await eventually(() => connected === 1, 'the confirmation')
    subscription.perform('stop', { stream: 'another' })
    await eventually(() => seen.length === 1, 'the answer')
    await broadcast(stream, { n: 1 })
    await eventually(() => seen.length === 2, 'a message')
    equal(seen, [{ stopped: 'another' }, { n: 1 }], 'the messages')
    consumer.disconnect()
  }
})
