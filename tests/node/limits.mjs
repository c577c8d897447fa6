// Scenarios of the unmodified npm clients on a server with the setting RATE_LIMITS = {"connect": "3/s"}.
import { createCable } from '@anycable/core'
import WebSocket from 'ws'
import { equal, eventually, ORIGIN, PageWebSocket, runAll, url } from './harness.mjs'

globalThis.addEventListener ??= () => {}
globalThis.removeEventListener ??= () => {}
globalThis.document ??= { visibilityState: 'visible' }

const { default: ActionCable } = await import('@rails/actioncable')
ActionCable.adapters.WebSocket = PageWebSocket
ActionCable.ConnectionMonitor.staleThreshold = 0.5
ActionCable.ConnectionMonitor.reconnectionBackoffRate = 0

/** How many clients of each kind connect at once. All of them must be subscribed in the end. */
const COUNT = 3

const scenarios = {
  async '@anycable/core comes back after its handshake was refused'() {
    const reasons = []
    const cables = Array.from({ length: COUNT }, () => {
      const cable = createCable(url, {
        protocol: 'actioncable-v1-ext-json',
        websocketImplementation: WebSocket,
        websocketOptions: { origin: ORIGIN },
        reconnectStrategy: () => 200,
        logLevel: 'error'
      })
      cable.on('close', event => reasons.push(event?.reason))
      return cable
    })
    const channels = cables.map(cable => cable.subscribeTo('EchoChannel'))
    await eventually(
      () => channels.every(channel => channel.state === 'connected'),
      () => `the subscriptions: ${channels.map(channel => channel.state)} ${reasons}`
    )
    for (const cable of cables) cable.disconnect()
  },

  async '@rails/actioncable comes back after its handshake was refused'() {
    let refused = 0
    const consumers = Array.from({ length: COUNT }, () => ActionCable.createConsumer(url))
    const connected = new Set()
    for (const consumer of consumers) {
      consumer.subscriptions.create('EchoChannel', {
        connected: () => connected.add(consumer),
        disconnected: () => (refused += 1)
      })
    }
    await eventually(() => connected.size === COUNT, () => `the subscriptions: ${connected.size}, ${refused}`)
    for (const consumer of consumers) consumer.disconnect()
    equal(connected.size, COUNT, 'the subscriptions')
  }
}

await runAll(scenarios)
