// Scenarios of the unmodified @anycable/core with the position of a page.
import { createCable } from '@anycable/core'
import { broadcast, call, clientOptions, equal, eventually, EXTENDED, range, runAll, unique, url } from './harness.mjs'

const open = options => createCable(url, { protocol: EXTENDED, ...clientOptions(), ...options })

/** Collect the numbers that a channel receives, and its events. */
function collect(channel) {
  channel.numbers = []
  channel.infos = []
  channel.on('message', ({ n }) => channel.numbers.push(n))
  channel.on('info', ({ type }) => channel.infos.push(type))
  return channel
}

await runAll({
  async 'begins after the data of its page, and goes on from its own position'() {
    for (const [kind, options] of [['after', {}], ['after', { historyTimestamp: false }], ['signed', {}]]) {
      const stream = unique('large:')
      await call('count_up', [stream, 1, 3])
      const page = await call('load_page', [stream])
      await call('count_up', [stream, 4, 300])
      const cable = open(options)
      const channel = collect(
        kind === 'after'
          ? cable.subscribeTo('StreamChannel', { streams: [stream], after: page.after })
          : cable.streamFromSigned(page.signed)
      )
      const writing = call('count_up', [stream, 301, 400])
      await channel.ensureSubscribed()
      await eventually(() => channel.numbers.includes(350), () => `${channel.numbers.length} messages`)
      cable.transport.ws?.terminate()
      await writing
      await eventually(() => channel.numbers.length >= 397, () => `${channel.numbers.length} messages`)
      await broadcast(stream, { n: 401 })
      await eventually(() => channel.numbers.includes(401), 'a live message')
      equal(channel.numbers, range(4, 401), 'exactly once, in order')
      equal(channel.infos.includes('history_not_found'), false, 'history was found')
      cable.disconnect()
    }
  },

  async 'is told where what came after its page is lost'() {
    const stream = unique('small:')
    await broadcast(stream, { n: 1 })
    const { after } = await call('load_page', [stream])
    await call('forget', [stream])
    const cable = open({ historyTimestamp: false })
    const channel = collect(cable.subscribeTo('StreamChannel', { streams: [stream], after }))
    await eventually(() => channel.infos.length > 0, 'the info event')
    equal(channel.infos, ['history_not_found'], 'told once')
    await broadcast(stream, { n: 2 })
    await eventually(() => channel.numbers.length > 0, 'it goes on')
    equal(channel.numbers, [2], 'what came')
    cable.disconnect()
  }
})
