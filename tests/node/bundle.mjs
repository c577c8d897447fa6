// Scenarios of the bundle in the static files: its helpers, beside the unmodified client.
import { call, CallError, keepSubscribed, watchPresence } from '../../reliable_cable/static/reliable_cable/cable.mjs'
import { open } from './bundled.mjs'
import { broadcast, call as inServer, cut, equal, eventually, EXTENDED, runAll, unique } from './harness.mjs'

/** Close a channel as the client does if the connection drops while a `subscribe` is unanswered. */
function close(cable, { identifier }) {
  const subscription = cable.hub.subscriptions.get(identifier)
  cable.hub.unsubscribe(identifier)
  subscription.close()
}

async function subscribe(cable, name, params) {
  const channel = cable.subscribeTo(name, params)
  channel.messages = []
  channel.on('message', message => channel.messages.push(message))
  await channel.ensureSubscribed()
  return channel
}

/** Return the reason for which a call has no result. */
const reasonOf = promise =>
  promise.then(
    result => `the result ${result}`,
    error => (error instanceof CallError ? error.reason : String(error))
  )

const scenarios = {
  ...Object.fromEntries(
    [EXTENDED, 'actioncable-v1-json'].map(protocol => [
      `${protocol}: a call returns what the action returned`,
      async () => {
        const cable = open({ protocol })
        const channel = await subscribe(cable, 'AnswerChannel', {})
        const results = await Promise.all([1, 2, 3].map(number => call(channel, 'double', { number })))
        equal(results, [2, 4, 6], 'the results')
        equal(await call(channel, 'keys'), ['action'], 'the data, without the id')
        equal(channel.messages, [], 'the messages')
        cable.disconnect()
      }
    ])
  ),

  async 'a call throws if there is no result'() {
    const cable = open()
    const channel = await subscribe(cable, 'AnswerChannel', {})
    equal(await reasonOf(call(channel, 'fail')), 'failed', 'an action that fails')
    equal(await reasonOf(call(channel, 'refuse')), 'refused', 'an action that refuses')
    equal(await reasonOf(call(channel, 'missing')), 'unknown_action', 'no such action')
    channel.disconnect()
    equal(await reasonOf(call(channel, 'double', { number: 1 })), 'not_subscribed', 'after the unsubscribe')
    cable.disconnect()
  },

  async 'a call waits for its subscription'() {
    const cable = open()
    const channel = cable.subscribeTo('AnswerChannel', {})
    equal(await call(channel, 'double', { number: 4 }), 8, 'the result')
    const rejected = cable.subscribeTo('RejectingChannel', { stream: unique('rejected') })
    equal(await reasonOf(call(rejected, 'double')), 'not_subscribed', 'a rejected subscription')
    cable.disconnect()
  },

  async 'a call times out, and its late answer reaches no handler'() {
    const cable = open()
    const channel = await subscribe(cable, 'AnswerChannel', {})
    const gate = unique('gate')
    equal(await reasonOf(call(channel, 'wait', { gate }, { timeout: 50 })), 'timeout', 'the reason')
    await inServer('open_gate', [gate])
    equal(await call(channel, 'double', { number: 1 }), 2, 'the next call')
    equal(channel.messages, [], 'the messages')
    cable.disconnect()
  },

  async 'a call is rejected when the connection is lost, and the next one works'() {
    const cable = open()
    const channel = await subscribe(cable, 'AnswerChannel', {})
    const gate = unique('gate')
    const pending = reasonOf(call(channel, 'wait', { gate }))
    await inServer('wait_at_gate', [gate, 1])
    cut(cable)
    equal(await pending, 'disconnected', 'the reason')
    await inServer('open_gate', [gate])
    await eventually(() => channel.state === 'connected' && cable.state === 'connected', 'the return')
    equal(await call(channel, 'double', { number: 3 }), 6, 'the result')
    equal(channel.messages, [], 'the messages')
    cable.disconnect()
    equal(await reasonOf(call(channel, 'double')), 'disconnected', 'after the end')
  },

  async 'several channels with one identifier share no answer'() {
    const cable = open()
    const [first, second] = [await subscribe(cable, 'AnswerChannel', {}), await subscribe(cable, 'AnswerChannel', {})]
    const results = await Promise.all([call(first, 'double', { number: 1 }), call(second, 'double', { number: 2 })])
    equal(results, [2, 4], 'the results')
    cable.disconnect()
  },

  async 'broadcasts and whispers are no answers'() {
    const [ann, bob] = [open(), open()]
    const stream = unique('stream')
    const atAnn = await subscribe(ann, 'AnswerChannel', { stream })
    const atBob = await subscribe(bob, 'AnswerChannel', { stream })
    const gate = unique('gate')
    const pending = call(atAnn, 'wait', { gate })
    await inServer('wait_at_gate', [gate, 1])
    await atBob.whisper({ $answer: 'a guess', result: 'forged' })
    await broadcast(stream, { $answer: 'data of the application' })
    await eventually(() => atAnn.messages.length === 1, 'the broadcast')
    await inServer('open_gate', [gate])
    equal(await pending, 'late', 'the result')
    ann.disconnect()
    bob.disconnect()
  },

  async 'keepSubscribed creates a channel again that was closed without a reason'() {
    const cable = open()
    const stream = unique('stream')
    const messages = []
    const kept = keepSubscribed(cable, 'StreamChannel', { streams: [stream] }, channel =>
      channel.on('message', message => messages.push(message))
    )
    await kept.channel.ensureSubscribed()
    const former = kept.channel
    close(cable, former)
    await eventually(() => kept.channel !== former, 'the new channel')
    cut(cable)
    await eventually(() => kept.channel.state === 'connected' && cable.state === 'connected', 'the subscription')
    await broadcast(stream, { n: 1 })
    await eventually(() => messages.length === 1, 'a message')
    kept.unsubscribe()
    equal(kept.channel.state, 'closed', 'after unsubscribe()')
    cable.disconnect()
  },

  async 'keepSubscribed accepts a rejection'() {
    const cable = open()
    const reasons = []
    const rejected = keepSubscribed(cable, 'RejectingChannel', { stream: unique('rejected') }, channel =>
      channel.on('close', reason => reasons.push(reason.name))
    )
    const other = keepSubscribed(cable, 'AnswerChannel')
    const [channel, former] = [rejected.channel, other.channel]
    await former.ensureSubscribed()
    await eventually(() => reasons.length === 1, 'the rejection')
    // The other channel is closed later, and both would be created again after the same time.
    close(cable, former)
    await eventually(() => other.channel !== former, 'the other channel')
    equal([reasons, rejected.channel === channel], [['SubscriptionRejectedError'], true], 'the rejected channel')
    cable.disconnect()
  },

  async 'watchPresence shows the members, also after a reconnect'() {
    const [ann, bob] = [open(), open()]
    const room = unique('room')
    const atAnn = await subscribe(ann, 'RoomChannel', { room })
    const atBob = await subscribe(bob, 'RoomChannel', { room })
    const shown = []
    const stop = watchPresence(atAnn, members => shown.push(members && members.map(({ id, info }) => `${id} ${info.name}`)))
    await eventually(() => shown.length > 0, 'the members')
    equal(shown.at(-1), [], 'nobody')
    await atBob.presence.join('bob', { name: 'Bob' })
    await eventually(() => shown.at(-1)?.length === 1, 'the join')
    equal(shown.at(-1), ['bob Bob'], 'the members')
    cut(ann)
    await atBob.presence.leave()
    await eventually(() => shown.includes(null), 'unknown while the connection is lost')
    await eventually(() => shown.at(-1)?.length === 0, 'the leave that it missed')
    stop()
    await atBob.presence.join('bob', { name: 'Bob' })
    await eventually(async () => 'bob' in (await atAnn.presence.info()), 'the join')
    equal(shown.at(-1), [], 'after stop()')
    ann.disconnect()
    bob.disconnect()
  },

  async 'a page that was closed leaves soon, and a lost connection does not'() {
    const [watcher, closed, lost] = [open(), open({ monitor: false }), open({ monitor: false })]
    const room = unique('room')
    const atWatcher = await subscribe(watcher, 'RoomChannel', { room })
    const events = []
    atWatcher.on('presence', ({ type, id }) => type !== 'info' && events.push(`${type} ${id}`))
    for (const [id, cable] of Object.entries({ closed, lost })) {
      const channel = await subscribe(cable, 'RoomChannel', { room })
      await channel.presence.join(id, {})
      await eventually(() => events.includes(`join ${id}`), 'the join')
    }
    cut(lost)
    closed.transport.ws.close(1001)
    await eventually(() => events.includes('leave closed'), 'the leave')
    equal(await atWatcher.presence.info(), { lost: {} }, 'the members')
    watcher.disconnect()
  },

  async 'presence.join without a stream is an error'() {
    const cable = open()
    const channel = await subscribe(cable, 'SilentChannel', {})
    const events = []
    channel.on('presence', ({ type }) => events.push(type))
    await channel.presence.join('ann', {})
    await eventually(() => events.length === 1, 'the event')
    equal(events, ['error'], 'the events')
    cable.disconnect()
  }
}

await runAll(scenarios)
