// Scenarios of unmodified clients whose sockets anycable-go serves in front of Django. The second argument is the port
// of anycable-go's HTTP broadcast adapter.
import { createHmac } from 'node:crypto'
import { common, named, numbers, open, subscribe, whispers } from './cables.mjs'
import { equal, eventually, EXTENDED, PageWebSocket, range, runAll, SECRET, unique, url } from './harness.mjs'

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

const extended = () => open({ protocol: EXTENDED })

const both = connect => ({
  ...common(connect, broadcast),

  async keepsItsState() {
    const cable = connect()
    const channel = await subscribe(cable, 'AuditedChannel', { audit: unique('audit') })
    for (const count of range(1, 3)) {
      await channel.perform('increment')
      await eventually(() => channel.messages.length === count, 'the answer')
    }
    equal(channel.messages, [{ count: 1 }, { count: 2 }, { count: 3 }], 'the counts')
    cable.disconnect()
  }
})

await runAll({
  ...named('extended', both(extended)),
  ...named('base', both(open)),

  async 'extended receives what it missed, and keeps its state'() {
    const cable = extended()
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

  'extended whispers': whispers(extended),

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
