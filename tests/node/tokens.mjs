// Scenarios of the unmodified @anycable/core with tokens. The server has the setting JWT_SECRET, and JWT_LEEWAY 0.
import { createCable } from '@anycable/core'
import { call, clientOptions, equal, eventually, EXTENDED, range, runAll, unique, url } from './harness.mjs'

const open = (token, options = {}) =>
  createCable(url, { protocol: EXTENDED, ...clientOptions(), auth: { token }, ...options })

/** The shortest time, in seconds, after which a token may expire: claims are whole seconds. */
const TTL = 2
/** How many messages a request broadcasts. */
const BATCH = 2

/** Let tokens expire while another client broadcasts. No message may be lost or repeated. */
const survivesExpiry = strategy => async () => {
  const user = unique('user')
  const stream = unique('stream')
  let refreshed = 0
  const cable = open(await call('make_token', [user, TTL]), {
    websocketAuthStrategy: strategy,
    tokenRefresher: async transport => {
      refreshed += 1
      transport.setToken(await call('make_token', [user, TTL]))
    }
  })
  const reasons = []
  cable.on('close', event => reasons.push(event?.reason))
  const channel = cable.subscribeTo('StreamChannel', { streams: [stream] })
  const received = []
  const infos = []
  let closed = 0
  channel.on('message', message => received.push(message.n))
  channel.on('info', event => infos.push(event.type))
  channel.on('close', () => (closed += 1))
  await channel.ensureSubscribed()
  let sent = 0
  while (refreshed < 3) {
    await call('count_up', [stream, sent + 1, sent + BATCH])
    sent += BATCH
    await new Promise(resolve => setTimeout(resolve, 20))
  }
  await eventually(() => received.length >= sent, () => `all messages: ${received.length} of ${sent}`)
  equal(received, range(1, sent), 'the messages')
  equal(infos.includes('history_not_found'), false, 'a notice of a loss')
  equal(closed, 0, 'how often the channel was closed')
  equal([...new Set(reasons)], ['token_expired'], 'the reasons')
  cable.disconnect()
}

/** Connect, and return the reason for which the cable is closed. */
async function refusalOf(cable) {
  let reason
  cable.on('close', event => (reason = event?.reason))
  await cable.connect().catch(() => {})
  await eventually(() => reason, 'a refusal')
  return reason
}

const scenarios = {
  'a token in the query expires': survivesExpiry('param'),
  'a token in a header expires': survivesExpiry('header'),
  'a token in a subprotocol expires': survivesExpiry('sub-protocol'),

  async 'the user is that of the token'() {
    const user = unique('user')
    const cable = open(await call('make_token', [user]))
    const channel = cable.subscribeTo('EchoChannel')
    const messages = []
    channel.on('message', message => messages.push(message))
    await channel.ensureSubscribed()
    await channel.perform('whoami')
    await eventually(() => messages.length === 1, 'the answer')
    equal(messages, [{ user }], 'the answer')
    cable.disconnect()
  },

  async 'a token that expired before is refreshed'() {
    const user = unique('user')
    const old = await call('make_token', [user, 1])
    await eventually(async () => {
      const cable = open(old)
      const connected = await cable.connect().then(() => true, () => false)
      cable.disconnect()
      await new Promise(resolve => setTimeout(resolve, 100))
      return !connected
    }, 'the expiry')
    let refreshed = 0
    const cable = open(old, {
      tokenRefresher: async transport => {
        refreshed += 1
        transport.setToken(await call('make_token', [user]))
      }
    })
    const channel = cable.subscribeTo('EchoChannel')
    await cable.connect().catch(() => {})
    await eventually(() => channel.state === 'connected', 'the subscription')
    equal(refreshed, 1, 'the number of new tokens')
    cable.disconnect()
  },

  async 'a wrong token is refused, and not refreshed'() {
    let refreshed = 0
    const token = (await call('make_token', [unique('user')])).slice(0, -4) + 'AAAA'
    const cable = open(token, { tokenRefresher: async () => (refreshed += 1) })
    equal(await refusalOf(cable), 'unauthorized', 'the reason')
    equal(refreshed, 0, 'the number of new tokens')
  },

  async 'a user who is deactivated is disconnected and refused'() {
    const user = unique('user')
    const cable = open(await call('make_token', [user]))
    let reason
    cable.on('close', event => (reason = event?.reason))
    await cable.connect()
    await call('change_user', [user, 'deactivate'])
    await eventually(() => reason, 'a refusal')
    equal(reason, 'unauthorized', 'the reason')
  }
}

await runAll(scenarios)
