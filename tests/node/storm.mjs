// @anycable/core, unmodified, in the storm (tests/storm/): says what its clients get, as JSON lines.
// Arguments: the cable's URL; the clients' names; their subscriptions, as [channel, params] pairs;
// whether they are present in the last one.
// Each line `members` on its standard input is answered with what each client believes about the last subscription.
import { createInterface } from 'node:readline'
import { createCable } from '@anycable/core'
import WebSocket from 'ws'

const [url, names, subscriptions] = [process.argv[2], JSON.parse(process.argv[3]), JSON.parse(process.argv[4])]
const say = event => process.stdout.write(JSON.stringify(event) + '\n')
const isPresent = process.argv[5] === 'present'
const rooms = {}

for (const [number, client] of names.entries()) {
  const cable = createCable(url, {
    protocol: 'actioncable-v1-ext-json',
    websocketImplementation: WebSocket,
    websocketOptions: { origin: 'http://127.0.0.1' },
    reconnectStrategy: () => 20 + Math.random() * 100,
    // Every fourth one recovers by its positions.
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
    say({ kind: reason ? 'rejected' : 'recreate', client, number, reason: String(reason) })
    // A drop while the subscribe was unanswered: README, "When the client closes a channel by itself".
    if (!reason) setTimeout(() => subscribe(cable, client, number, name, params), 50)
  })
}

function enter(channel, client) {
  rooms[client] = channel
  if (isPresent) {
    // The client forgets that it joined when it makes the channel again, and repeats it by itself otherwise.
    channel.once('connect', () => channel.presence.join(client, { name: client }))
  }
}

createInterface({ input: process.stdin }).on('line', async () => {
  for (const client of names) {
    const members = await rooms[client].presence.info().catch(() => null)
    say({ kind: 'members', client, members })
  }
})
