// Scenarios of the unmodified @anycable/core, with the extended and the base protocol.
import { createCable as createWebCable } from '@anycable/web'
import WebSocket from 'ws'
import { collect, common, named, numbers, open, subscribe, whispers } from './cables.mjs'
import { broadcast, call, cut, equal, eventually, EXTENDED, ORIGIN, range, runAll, sign, unique, url } from './harness.mjs'

const extended = (options = {}) => open({ protocol: EXTENDED, ...options })

/** The scenarios for both protocols. */
const both = connect => ({
  ...common(connect, broadcast),

  async subscribesAgainAfterUnsubscribing() {
    const cable = connect()
    const stream = unique('stream')
    for (const n of range(1, 3)) {
      const channel = await subscribe(cable, 'StreamChannel', { streams: [stream] })
      await broadcast(stream, { n })
      await eventually(() => numbers(channel).includes(n), `message ${n}`)
      channel.disconnect()
    }
    cable.disconnect()
  },

  async reconnects() {
    const cable = connect()
    const stream = unique('stream')
    const channel = await subscribe(cable, 'StreamChannel', { streams: [stream] })
    cut(cable)
    await eventually(() => channel.connects.length === 2, 'the channel is back')
    await broadcast(stream, { n: 1 })
    await eventually(() => channel.messages.length === 1, 'a message')
    cable.disconnect()
  }
})

const scenarios = {
  ...named('extended', both(extended)),
  ...named('base', both(open)),

  // By default, the client uses the base protocol (see Protocol: Handshake).
  async 'base is the default, and gets no positions'() {
    const cable = open()
    const stream = unique('stream')
    const channel = await subscribe(cable, 'StreamChannel', { streams: [stream] })
    equal(cable.transport.ws.protocol, 'actioncable-v1-json', 'the subprotocol')
    await broadcast(stream, { n: 1 })
    await eventually(() => channel.messages.length === 1, 'a message')
    equal(channel.metas, [undefined], 'the meta')
    cable.disconnect()
  },

  async 'extended positions'() {
    const cable = extended()
    const stream = unique('stream')
    const channel = await subscribe(cable, 'StreamChannel', { streams: [stream] })
    const { epoch } = await broadcast(stream, { n: 1 })
    await eventually(() => channel.messages.length === 1, 'a message')
    equal(channel.metas, [{ stream, epoch, offset: 1 }], 'the meta')
    // The message may be received as part of the history.
    await eventually(() => channel.infos.length === 1, 'the first history')
    equal(channel.infos, ['history_received'], 'the first history')
    cable.disconnect()
  },

  async 'extended history since the page was rendered'() {
    const stream = unique('stream')
    const historyTimestamp = Math.floor(Date.now() / 1000)
    await call('count_up', [stream, 1, 5])
    const cable = extended({ historyTimestamp })
    const channel = await subscribe(cable, 'StreamChannel', { streams: [stream] })
    await broadcast(stream, { n: 6 })
    await eventually(() => channel.messages.length === 6, () => numbers(channel))
    equal(numbers(channel), range(1, 6), 'what came since')
    cable.disconnect()
  },

  async 'extended without history'() {
    const stream = unique('stream')
    await call('count_up', [stream, 1, 5])
    const cable = extended({ historyTimestamp: false })
    const channel = await subscribe(cable, 'StreamChannel', { streams: [stream] })
    await broadcast(stream, { n: 6 })
    await eventually(() => channel.messages.length > 0, 'a message')
    equal(numbers(channel), [6], 'what came')
    cable.disconnect()
  },

  async 'extended restores its session, again and again'() {
    const cable = extended()
    const stream = unique('large:')
    const channels = [
      await subscribe(cable, 'StreamChannel', { streams: [stream] }),
      await subscribe(cable, 'StreamChannel', { streams: [stream], again: true }),
      await subscribe(cable, 'AuditedChannel', { audit: unique('audit'), streams: [stream] })
    ]
    for (const round of range(0, 4)) {
      const writing = call('count_up', [stream, round * 50 + 1, round * 50 + 50])
      await eventually(() => numbers(channels[0]).includes(round * 50 + 5), 'the run has begun')
      cut(cable)
      await writing
      await eventually(
        () => channels.every(channel => channel.connects.length === round + 2),
        () => `restored: ${channels.map(channel => channel.connects.length)}`
      )
    }
    for (const channel of channels) {
      const got = () => numbers(channel).filter(n => n !== undefined)
      await eventually(() => got().length >= 250, () => `${got().length} of 250`)
      equal(got(), range(1, 250), 'exactly once, in order')
      equal(channel.connects.slice(1).every(event => event.restored), true, 'restored')
      equal(channel.infos.includes('history_not_found'), false, 'history was found')
    }
    equal(channels[2].messages.filter(message => message.count === 0).length, 5, 'resubscribed transmitted')
    cable.disconnect()
  },

  async 'extended loses the rights that were taken away, and keeps its state'() {
    const cable = extended()
    const [kept, lost, opened] = [unique('rights'), unique('rights'), unique('rights')]
    for (const stream of [kept, lost]) await call('allow', [stream])
    const member = await subscribe(cable, 'RightsChannel', { streams: [kept, lost] })
    const removed = await subscribe(cable, 'RightsChannel', { streams: [lost], id: 'removed' })
    let reason
    removed.on('close', error => (reason = error))
    await member.perform('start', { stream: opened })
    await member.perform('increment')
    await eventually(() => member.messages.length === 2, 'the answers')
    await call('forbid', [lost])
    cut(cable)
    await eventually(() => cable.state !== 'connected', 'the cut')
    for (const stream of [lost, kept, opened]) await broadcast(stream, { stream })
    await eventually(() => reason !== undefined, 'the rejection')
    equal([reason?.name, removed.state], ['SubscriptionRejectedError', 'closed'], 'the channel of the lost right')
    await eventually(() => member.messages.length === 4, 'what the other channel may still read')
    equal(new Set(member.messages.slice(2).map(message => message.stream)), new Set([kept, opened]), 'its streams')
    await member.perform('increment')
    await eventually(() => member.messages.length === 5, 'the answer')
    equal(member.messages.at(-1), { count: 2 }, 'its state')
    equal(removed.messages, [], 'what the other channel received')
    cable.disconnect()
  },

  async 'extended is told of a revocation, and rejected when it subscribes again'() {
    const cable = extended()
    const [kept, lost] = [unique('revoked'), unique('revoked')]
    for (const stream of [kept, lost]) await call('allow', [stream])
    const member = await subscribe(cable, 'RightsChannel', { streams: [kept] })
    const removed = await subscribe(cable, 'RightsChannel', { streams: [lost] })
    let error
    removed.on('close', event => (error = event))
    await call('forbid', [lost])
    await call('revoke', [], { stream: lost, reason: 'You were removed.' })
    await eventually(() => error !== undefined, 'the rejection')
    equal([error?.name, removed.state], ['SubscriptionRejectedError', 'closed'], 'the channel of the lost right')
    for (const stream of [lost, kept]) await broadcast(stream, { stream })
    await eventually(() => member.messages.length === 1, 'what may be read')
    equal(removed.messages, [{ type: 'revoked', reason: 'You were removed.' }], 'what the removed channel received')
    equal(member.connects.slice(1), [{ reconnect: true, restored: true }], 'the other channel was restored')
    cable.disconnect()
  },

  async 'extended subscribes again after a revocation, if it may, and misses nothing'() {
    const cable = extended()
    const stream = unique('revoked')
    await call('allow', [stream])
    const channel = await subscribe(cable, 'RightsChannel', { streams: [stream] })
    await broadcast(stream, { n: 1 })
    await eventually(() => channel.messages.length === 1, 'a message')
    await call('revoke', [], { stream, reason: 'Decide again.' })
    await broadcast(stream, { n: 2 })
    await eventually(() => channel.messages.length === 3, 'the missed message')
    equal(channel.messages, [{ n: 1 }, { type: 'revoked', reason: 'Decide again.' }, { n: 2 }], 'the messages')
    equal(channel.connects.slice(1), [{ reconnect: true, restored: false }], 'how it connected again')
    cable.disconnect()
  },

  async 'base is told of a revocation'() {
    const cable = open()
    const [kept, lost] = [unique('revoked'), unique('revoked')]
    for (const stream of [kept, lost]) await call('allow', [stream])
    const member = await subscribe(cable, 'RightsChannel', { streams: [kept] })
    const removed = await subscribe(cable, 'RightsChannel', { streams: [lost] })
    await call('revoke', [], { stream: lost, reason: 'You were removed.' })
    await eventually(() => removed.messages.length === 1, 'the reason')
    for (const stream of [lost, kept]) await broadcast(stream, { stream })
    await eventually(() => member.messages.length === 1, 'what may be read')
    equal(removed.messages, [{ type: 'revoked', reason: 'You were removed.' }], 'what the removed channel received')
    equal(member.connects.length, 1, 'the connection stays')
    cable.disconnect()
  },

  async 'extended recovers by its positions where the session is gone'() {
    const cable = extended({ protocolOptions: { disableSessionRecovery: true } })
    const stream = unique('large:')
    const channel = await subscribe(cable, 'StreamChannel', { streams: [stream] })
    for (const round of range(0, 2)) {
      const writing = call('count_up', [stream, round * 50 + 1, round * 50 + 50])
      await eventually(() => numbers(channel).includes(round * 50 + 5), 'the run has begun')
      cut(cable)
      await writing
      await eventually(() => numbers(channel).length >= round * 50 + 50, () => `${numbers(channel)}`)
    }
    equal(numbers(channel), range(1, 150), 'exactly once, in order')
    equal(channel.connects.slice(1).some(event => event.restored), false, 'not restored')
    cable.disconnect()
  },

  async 'extended takes only once what is sent while it is away, and unsubscribes meanwhile'() {
    const cable = extended()
    const [kept, left] = [unique('stream'), unique('stream')]
    const first = await subscribe(cable, 'StreamChannel', { streams: [kept] })
    const second = await subscribe(cable, 'StreamChannel', { streams: [left] })
    cut(cable)
    await eventually(() => cable.state !== 'connected', 'the cut')
    second.disconnect()
    await broadcast(kept, { n: 1 })
    await broadcast(left, { n: 1 })
    await eventually(() => first.messages.length === 1, 'the message')
    equal(second.messages, [], 'nothing for who left')
    // The new subscribe must be confirmed, although the server still has the restored subscription.
    const again = await subscribe(cable, 'StreamChannel', { streams: [left] })
    await broadcast(left, { n: 2 })
    await eventually(() => numbers(again).includes(2), 'the message')
    cable.disconnect()
  },

  async 'extended is told where history is lost'() {
    const cable = extended()
    const stream = unique('small:')
    const channel = await subscribe(cable, 'StreamChannel', { streams: [stream] })
    await broadcast(stream, { n: 1 })
    await eventually(() => channel.messages.length === 1, 'a message')
    await call('forget', [stream])
    await broadcast(stream, { n: 2 })
    await eventually(() => channel.infos.includes('history_not_found'), 'the info event')
    await eventually(() => numbers(channel).includes(2), 'it goes on')
    cable.disconnect()
  },

  async 'extended presence'() {
    const [ann, bob] = [extended(), extended()]
    const room = unique('room')
    const atAnn = await subscribe(ann, 'RoomChannel', { room })
    const atBob = await subscribe(bob, 'RoomChannel', { room })
    await atAnn.presence.join(7, { name: 'Ann' })
    await eventually(() => atBob.presences.length === 1 && atAnn.presences.length === 1, 'the join')
    equal(atBob.presences, [{ type: 'join', id: '7', info: { name: 'Ann' } }], 'the event')
    equal(await atBob.presence.info(), { 7: { name: 'Ann' } }, 'the members')
    await atBob.presence.join('bob', {})
    await eventually(() => atAnn.presences.length === 2, 'the second join')
    equal(await atAnn.presence.info(), { 7: { name: 'Ann' }, bob: {} }, 'the members')

    // After the restore, the list is correct, and no client received a leave of the restored member.
    cut(bob)
    await atAnn.presence.leave()
    await eventually(() => atBob.connects.length === 2, 'the return')
    await eventually(async () => !('7' in (await atBob.presence.info())), 'the leave that it missed')
    equal(await atBob.presence.info(), { bob: {} }, 'the members')
    equal(atAnn.presences.filter(event => event.type === 'leave' && event.id === 'bob'), [], 'no leave')
    atBob.disconnect()
    await eventually(() => atAnn.presences.at(-1).type === 'leave' && atAnn.presences.at(-1).id === 'bob', 'the leave')
    ann.disconnect()
    bob.disconnect()
  },

  'extended whispers': whispers(extended),

  async 'extended signed streams'() {
    const cable = extended()
    const stream = unique('chat/')
    const channel = collect(cable.streamFromSigned(sign(stream)))
    await channel.ensureSubscribed()
    await broadcast(stream, { n: 1 })
    await eventually(() => channel.messages.length === 1, 'a message')
    const unsigned = cable.streamFrom(stream)
    const error = await unsigned.ensureSubscribed().catch(({ name }) => name)
    equal(error, 'SubscriptionRejectedError', 'public streams are off')
    cable.disconnect()
  },

  async 'extended is left out by its session id'() {
    const [ann, bob] = [extended(), extended()]
    const stream = unique('stream')
    const atAnn = await subscribe(ann, 'StreamChannel', { streams: [stream] })
    const atBob = await subscribe(bob, 'StreamChannel', { streams: [stream] })
    await broadcast(stream, { n: 1 }, { exclude_socket: ann.sessionId })
    await broadcast(stream, { n: 2 })
    await eventually(() => numbers(atBob).length === 2 && numbers(atAnn).length > 0, 'the messages')
    equal(numbers(atAnn), [2], 'what came to who was left out')
    ann.disconnect()
    bob.disconnect()
  },

  async 'web refreshes an expired token'() {
    for (const protocol of [EXTENDED, 'actioncable-v1-json']) {
      const reasons = []
      const cable = createWebCable(url, {
        protocol,
        websocketImplementation: WebSocket,
        websocketOptions: { origin: ORIGIN },
        monitor: false,
        logLevel: 'error',
        auth: { token: 'expired', param: 'token' },
        tokenRefresher: async transport => transport.setToken('fresh', 'token')
      })
      cable.on('close', event => reasons.push(event?.reason))
      const channel = cable.subscribeTo('EchoChannel', {})
      await eventually(() => cable.state === 'connected' && channel.state === 'connected', () => cable.state)
      equal(reasons, ['token_expired'], 'the reasons')
      cable.disconnect()
    }
  },

  async 'extended pongs'() {
    const cable = extended({ protocolOptions: { pongs: true } })
    const channel = await subscribe(cable, 'EchoChannel', {})
    cable.protocol.sendPong()
    await channel.perform('echo', { n: 1 })
    await eventually(() => channel.messages.length === 1, 'the answer')
    equal(channel.connects.length, 1, 'no drop')
    cable.disconnect()
  }
}

await runAll(scenarios)
