// Uses every export of the bundle with its types. It is only checked, and never runs.
import {
  call,
  CallError,
  Channel,
  createCable,
  createConsumer,
  fetchTokenFromHTML,
  followRun,
  keepSubscribed,
  watchPresence
} from '../../reliable_cable/static/reliable_cable/cable.mjs'

const cable = createCable({ protocol: 'actioncable-v1-ext-json', tokenRefresher: fetchTokenFromHTML() })
const consumer = createConsumer()
consumer.disconnect()

class ChatChannel extends Channel<{ room_id: number }, { text: string }> {
  static identifier = 'ChatChannel'
}

const kept = keepSubscribed(cable, 'ChatChannel', { room_id: 1 }, channel => channel.on('message', console.log))
const typed = keepSubscribed(cable, ChatChannel, { room_id: 1 }, channel => {
  channel.on('message', ({ text }) => console.log(text.trim()))
})
typed.unsubscribe()

const stop: () => void = watchPresence<{ name: string }>(kept.channel, members => {
  for (const { id, info } of members ?? []) console.log(id.trim(), info.name.trim())
})
stop()

const run = followRun(cable, '8e1b…', {
  onText: (text, added) => console.log(text.trim(), added?.trim()),
  onPart: (part, parts) => {
    if (part.type === 'source') console.log(part.url.trim(), parts.length)
  },
  onState: state => console.log(state === 'disconnected'),
  onEnd: ({ status, error }) => console.log(status === 'rejected', error.trim())
})
const stopped: Promise<void> = run.stop()
console.log(stopped, run.state === 'running', run.text.trim(), run.parts.length)
run.close()

try {
  const number: number = await call<number>(kept.channel, 'double', { number: 21 }, { timeout: 5000 })
  const other: unknown = await call(typed.channel, 'speak')
  console.log(number, other)
} catch (error) {
  if (error instanceof CallError && error.reason === 'timeout') console.log(error.action.trim())
}

// @ts-expect-error: the data is an object
await call(kept.channel, 'double', 21)
// @ts-expect-error: the room is a number
keepSubscribed(cable, ChatChannel, { room_id: 'one' })
// @ts-expect-error: while the connection is lost, there are no members
watchPresence(kept.channel, members => console.log(members.length))
// @ts-expect-error: the id is text
followRun(cable, 1)
// @ts-expect-error: `added` may be null
followRun(cable, '8e1b…', { onText: (text, added) => console.log(added.trim()) })
