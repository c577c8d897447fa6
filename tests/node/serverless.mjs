// Scenarios of the unmodified @anycable/serverless-js, which broadcasts over HTTP to clients of @anycable/core.
import { createHmac } from 'node:crypto'
import { createCable } from '@anycable/core'
import WebSocket from 'ws'
import { equal, eventually, ORIGIN, port, range, runAll, SECRET, unique, url } from './harness.mjs'
// Imported by its path, because the entry of the package imports folders. Only bundlers support that.
import { broadcaster } from './node_modules/@anycable/serverless-js/dist/broadcast/index.js'

const endpoint = `http://127.0.0.1:${port}/_broadcast`
const key = createHmac('sha256', SECRET).update('broadcast-cable').digest('hex')

async function subscribe(streams) {
  const cable = createCable(url, {
    protocol: 'actioncable-v1-ext-json',
    websocketImplementation: WebSocket,
    websocketOptions: { origin: ORIGIN },
    logLevel: 'error'
  })
  const channel = cable.subscribeTo('StreamChannel', { streams })
  channel.got = []
  channel.on('message', message => channel.got.push(message))
  await channel.ensureSubscribed()
  return channel
}

await runAll({
  async 'broadcasts reach subscribers, in order'() {
    const stream = unique('large:')
    const channel = await subscribe([stream])
    const broadcast = broadcaster(endpoint, key)
    for (const n of range(1, 50)) await broadcast(stream, { n, text: 'żółw 🐢 "</script>' })
    await eventually(() => channel.got.length === 50, () => `${channel.got.length} of 50`)
    equal(channel.got.map(message => message.n), range(1, 50), 'the order')
    equal(channel.got[0], { n: 1, text: 'żółw 🐢 "</script>' }, 'the message')
    channel.disconnect()
  },

  async 'a string is a string'() {
    const stream = unique('serverless/')
    const channel = await subscribe([stream])
    await broadcaster(endpoint, key)(stream, '{"no": "object"}')
    await eventually(() => channel.got.length === 1, 'a message')
    equal(channel.got, ['{"no": "object"}'], 'the message')
    channel.disconnect()
  },

  async 'without the key it fails'() {
    for (const wrong of [undefined, 'wrong']) {
      const error = await broadcaster(endpoint, wrong)('serverless', { n: 1 }).catch(error => error)
      equal(error.message, 'Error broadcasting to serverless: Unauthorized', 'the error')
    }
  }
})
