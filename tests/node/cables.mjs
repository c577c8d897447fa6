// Cables and channels of the unmodified @anycable/core, and scenarios that also work behind anycable-go.
import { createCable } from '@anycable/core'
import { clientOptions, equal, eventually, range, unique, url } from './harness.mjs'

/** Create a cable. Without `protocol`, it uses the default of the client. */
export const open = (options = {}) => createCable(url, { ...clientOptions(), ...options })

/** Subscribe, wait for the confirmation, and collect the received messages. */
export async function subscribe(cable, name, params) {
  const channel = collect(cable.subscribeTo(name, params))
  await channel.ensureSubscribed()
  return channel
}

export function collect(channel) {
  channel.messages = []
  channel.metas = []
  channel.infos = []
  channel.presences = []
  channel.connects = []
  channel.on('message', (message, meta) => {
    channel.messages.push(message)
    channel.metas.push(meta)
  })
  channel.on('info', event => channel.infos.push(event.type))
  channel.on('presence', event => channel.presences.push(event))
  channel.on('connect', event => channel.connects.push(event))
  return channel
}

export const numbers = channel => channel.messages.map(message => message.n)

/**
 * Return scenarios for a protocol.
 *
 * @param connect creates a cable with the protocol.
 * @param broadcast broadcasts an object to a stream.
 */
export const common = (connect, broadcast) => ({
  async performs() {
    const cable = connect()
    const channel = await subscribe(cable, 'EchoChannel', { room: 7 })
    await channel.perform('echo', { text: 'hi' })
    await channel.perform('aecho', { text: 'again' })
    await eventually(() => channel.messages.length === 2, 'two answers')
    equal(channel.messages[0], { echo: { text: 'hi', action: 'echo' }, params: { room: 7 } }, 'the answer')
    cable.disconnect()
  },

  async isRejected() {
    const cable = connect()
    const channel = cable.subscribeTo('RejectingChannel', { stream: unique('rejected') })
    const error = await channel.ensureSubscribed().then(
      () => 'none',
      ({ name }) => name
    )
    equal(error, 'SubscriptionRejectedError', 'the error')
    equal(channel.state, 'closed', 'the state')
    cable.disconnect()
  },

  async streams() {
    const cable = connect()
    const stream = unique('stream')
    const [first, second] = [
      await subscribe(cable, 'StreamChannel', { streams: [stream] }),
      await subscribe(cable, 'GreetingChannel', { stream })
    ]
    for (const n of range(1, 20)) await broadcast(stream, { n })
    await eventually(() => first.messages.length === 20 && second.messages.length === 22, 'all messages')
    equal(numbers(first), range(1, 20), 'the first')
    equal(second.messages.slice(0, 2), [{ greeting: 1 }, { greeting: 2 }], 'transmissions come first')
    equal(numbers(second).slice(2), range(1, 20), 'the second')
    first.disconnect()
    await broadcast(stream, { n: 21 })
    await eventually(() => second.messages.length === 23, 'the second goes on')
    equal(first.messages.length, 20, 'after unsubscribing')
    cable.disconnect()
  }
})

/** Return a scenario in which two clients whisper. `connect` creates a cable with the extended protocol. */
export const whispers = connect => async () => {
  const [ann, bob] = [connect(), connect()]
  const room = unique('room')
  const atAnn = await subscribe(ann, 'RoomChannel', { room })
  const atBob = await subscribe(bob, 'RoomChannel', { room })
  await atAnn.whisper({ typing: true })
  await eventually(() => atBob.messages.length === 1, 'the whisper')
  equal(atBob.messages, [{ typing: true }], 'the whisper')
  await atBob.whisper({ n: 2 })
  await eventually(() => atAnn.messages.length === 1, 'the answer')
  equal(atAnn.messages, [{ n: 2 }], 'whispers skip their sender')
  ann.disconnect()
  bob.disconnect()
}

/** Return scenarios with a prefix before their names. */
export const named = (prefix, scenarios) =>
  Object.fromEntries(Object.entries(scenarios).map(([name, scenario]) => [`${prefix} ${name}`, scenario]))
