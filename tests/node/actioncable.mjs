// Scenarios of the unmodified @rails/actioncable, with the parts of a browser that it needs.
import { broadcast, call, equal, eventually, PageWebSocket, range, runAll, unique, url } from './harness.mjs'

globalThis.addEventListener ??= () => {}
globalThis.removeEventListener ??= () => {}
globalThis.document ??= { visibilityState: 'visible' }

const { default: ActionCable } = await import('@rails/actioncable')
ActionCable.adapters.WebSocket = PageWebSocket
// The interval at which the client looks for stale connections and reconnects. The default is at least 3 seconds.
ActionCable.ConnectionMonitor.staleThreshold = 6
ActionCable.ConnectionMonitor.reconnectionBackoffRate = 0

/** Subscribe, wait for the confirmation, and collect the received messages. */
async function subscribe(consumer, channel, params) {
  const seen = { messages: [], connected: [], disconnected: 0, rejected: false }
  seen.subscription = consumer.subscriptions.create(
    { channel, ...params },
    {
      connected: event => seen.connected.push(event),
      disconnected: () => (seen.disconnected += 1),
      rejected: () => (seen.rejected = true),
      received: message => seen.messages.push(message)
    }
  )
  await eventually(() => seen.connected.length > 0 || seen.rejected, `an answer for ${channel}`)
  return seen
}

const numbers = seen => seen.messages.map(message => message.n)

const scenarios = {
  async 'subscribes and performs'() {
    const consumer = ActionCable.createConsumer(url)
    const seen = await subscribe(consumer, 'EchoChannel', { room: 7 })
    equal(consumer.connection.webSocket.protocol, 'actioncable-v1-json', 'the subprotocol')
    seen.subscription.perform('echo', { text: 'hi' })
    seen.subscription.send({ action: 'aecho', text: 'again' })
    await eventually(() => seen.messages.length === 2, 'two answers')
    equal(seen.messages[0], { echo: { text: 'hi', action: 'echo' }, params: { room: 7 } }, 'the answer')
    consumer.disconnect()
  },

  async 'is rejected'() {
    const consumer = ActionCable.createConsumer(url)
    const seen = await subscribe(consumer, 'RejectingChannel', { stream: unique('rejected') })
    equal([seen.rejected, seen.connected.length], [true, 0], 'rejected')
    consumer.disconnect()
  },

  async 'is rejected when its subscription is revoked, and stays connected'() {
    const consumer = ActionCable.createConsumer(url)
    const [kept, lost] = [unique('revoked'), unique('revoked')]
    const member = await subscribe(consumer, 'StreamChannel', { streams: [kept] })
    const removed = await subscribe(consumer, 'StreamChannel', { streams: [lost] })
    await call('revoke', [], { stream: lost, reason: 'You were removed.' })
    await eventually(() => removed.rejected, 'the rejection')
    for (const stream of [lost, kept]) await broadcast(stream, { stream })
    await eventually(() => member.messages.length === 1, 'what may be read')
    equal(removed.messages, [{ type: 'revoked', reason: 'You were removed.' }], 'what the removed one received')
    equal(member.connected.length, 1, 'the connection stays')
    consumer.disconnect()
  },

  async 'streams, under several identifiers'() {
    const consumer = ActionCable.createConsumer(url)
    const stream = unique('stream')
    const first = await subscribe(consumer, 'StreamChannel', { streams: [stream] })
    const second = await subscribe(consumer, 'GreetingChannel', { stream })
    for (const n of range(1, 20)) await broadcast(stream, { n })
    await eventually(() => first.messages.length === 20 && second.messages.length === 22, 'all messages')
    equal(numbers(first), range(1, 20), 'the first')
    equal(second.messages.slice(0, 2), [{ greeting: 1 }, { greeting: 2 }], 'transmissions')
    first.subscription.unsubscribe()
    await broadcast(stream, { n: 21 })
    await eventually(() => second.messages.length === 23, 'the second goes on')
    equal(first.messages.length, 20, 'after unsubscribing')
    consumer.disconnect()
  },

  async 'a second object for a subscription is connected, too'() {
    const consumer = ActionCable.createConsumer(url)
    const { guarantor } = consumer.subscriptions
    const stream = unique('stream')
    const objects = []
    for (const count of range(1, 3)) {
      objects.push(await subscribe(consumer, 'StreamChannel', { streams: [stream] }))
      await eventually(() => guarantor.pendingSubscriptions.length === 0, `${count} objects that ask no more`)
    }
    await broadcast(stream, { n: 1 })
    await eventually(() => objects.every(seen => seen.messages.length === 1), 'a message')
    equal(objects.map(numbers), [[1], [1], [1]], 'once each')
    consumer.disconnect()
  },

  async 'reconnects and subscribes again'() {
    const consumer = ActionCable.createConsumer(url)
    const stream = unique('stream')
    const seen = await subscribe(consumer, 'StreamChannel', { streams: [stream] })
    consumer.connection.webSocket.terminate()
    await eventually(() => seen.disconnected === 1, 'the cut')
    consumer.connection.reopen()
    await eventually(() => seen.connected.length === 2, 'the return')
    await broadcast(stream, { n: 1 })
    await eventually(() => seen.messages.length === 1, 'a message')
    consumer.disconnect()
  }
}

await runAll(scenarios)
