// Clients of the unmodified @anycable/core for the storm tests (tests/storm/). They print messages as JSON lines.
// Arguments: the URL of the cable; the names of the clients; their subscriptions, as pairs [channel, params].
// They join the presence of the last one.
// For each line `members` on the standard input, each client prints the members that it knows of its last subscription.
import { createInterface } from 'node:readline'
import { createCable } from '@anycable/core'
import WebSocket from 'ws'

const [url, names, subscriptions] = [process.argv[2], JSON.parse(process.argv[3]), JSON.parse(process.argv[4])]
const say = event => process.stdout.write(JSON.stringify(event) + '\n')
const rooms = {}

for (const [number, client] of names.entries()) {
  const cable = createCable(url, {
    protocol: 'actioncable-v1-ext-json',
    websocketImplementation: WebSocket,
    websocketOptions: { origin: 'http://127.0.0.1' },
    reconnectStrategy: () => 20 + Math.random() * 100,
    // Every fourth client recovers with its positions, without restoring its session.
    protocolOptions: { disableSessionRecovery: number % 4 === 3 },
    logLevel: 'error'
  })
  subscriptions.forEach(([name, params], number) => subscribe(cable, client, number, name, params))
}

function subscribe(cable, client, number, name, params) {
  const channel = cable.subscribeTo(name, params)
  if (number === subscriptions.length - 1) enter(channel, client)
  channel.on('message', (message, meta) => say({ kind: 'message', client, number, message, meta }))
  channel.on('info', ({ type }) => say({ kind: type, client, number }))
  channel.on('connect', ({ restored }) => say({ kind: restored ? 'restore' : 'connect', client, number }))
  channel.on('close', reason => {
    const rejected = reason?.name === 'SubscriptionRejectedError'
    say({ kind: rejected ? 'rejected' : 'recreate', client, number, reason: String(reason) })
    // The connection was lost while the subscribe was unanswered (see Protocol: Subscriptions), or a server that was
    // paused did not answer in time. The bundle's `keepSubscribed` does the same.
    if (!rejected) setTimeout(() => subscribe(cable, client, number, name, params), 50)
  })
}

function enter(channel, client) {
  rooms[client] = channel
  // The client joins again after a reconnect, but not after the channel was created again.
  channel.once('connect', () => channel.presence.join(client, { name: client }))
}

createInterface({ input: process.stdin }).on('line', async () => {
  for (const client of names) {
    const members = await rooms[client].presence.info().catch(() => null)
    say({ kind: 'members', client, members })
  }
})
