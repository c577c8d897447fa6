// Follows a run: an answer that a background task writes (see the page "Answers of language models").
import { call } from './call.js'
import { keepSubscribed } from './keep_subscribed.js'

// The status of a run after each event that ends an attempt.
const ENDS = { complete: 'completed', stopped: 'stopped', error: 'failed' }
const ACTIVE = ['connecting', 'queued', 'running']

let followers = 0

// Return the parts of a snapshot with `at` as an index of the text. The server counts characters, and JavaScript counts
// UTF-16 code units.
function withIndexes(parts, text) {
  let [index, characters] = [0, 0]
  return parts.map(part => {
    for (; characters < part.at && index < text.length; characters++) index += text.codePointAt(index) > 0xffff ? 2 : 1
    return { ...part, at: index }
  })
}

// Return the parts with one more. Reasoning that directly follows reasoning extends it.
function withPart(parts, part) {
  const last = parts[parts.length - 1]
  if (last?.type !== 'reasoning' || part.type !== 'reasoning' || last.at !== part.at) return [...parts, part]
  return [...parts.slice(0, -1), { ...last, text: last.text + part.text }]
}

export function followRun(cable, id, { onText, onPart, onState, onEnd } = {}) {
  let attempt = 0
  let status = 'connecting'
  let text = ''
  let parts = []
  // The position of the newest event in the stream. The base protocol has no positions.
  let position
  let isLost = cable.state === 'disconnected' || cable.state === 'closed'
  let shown
  let isClosed = false

  const hasEnded = () => !ACTIVE.includes(status)
  const state = () => (isLost && !hasEnded() ? 'disconnected' : status)
  const notify = (callback, ...values) => isClosed || callback?.(...values)

  const showState = () => {
    if (shown === state()) return
    shown = state()
    notify(onState, shown)
  }

  const end = (to, { error, message, usage } = {}) => {
    status = to
    showState()
    notify(onEnd, { status, error: error || message || '', usage: usage ?? {}, text, parts })
  }

  // Begin anew with the answer in a snapshot, or with an empty one for a new attempt.
  const replace = event => {
    const isSameAttempt = attempt === event.attempt
    const wasEnded = isSameAttempt && hasEnded()
    const newParts = withIndexes(event.parts, event.content)
    const isSame = isSameAttempt && text === event.content && JSON.stringify(parts) === JSON.stringify(newParts)
    ;[attempt, text, parts] = [event.attempt, event.content, newParts]
    const isActive = ACTIVE.includes(event.status)
    if (isActive) status = event.status
    if (!isSame) {
      notify(onText, text, null)
      newParts.forEach((part, index) => notify(onPart, part, newParts.slice(0, index + 1)))
    }
    if (!isActive && !wasEnded) end(event.status, event)
  }

  const extend = event => {
    status = 'running'
    if (event.event === 'chunk') {
      text += event.content
      notify(onText, text, event.content)
    } else if (event.event === 'part') {
      parts = withPart(parts, { ...event.part, at: text.length })
      notify(onPart, parts[parts.length - 1], parts)
    } else if (ENDS[event.event]) {
      end(ENDS[event.event], event)
    }
  }

  const receive = (event, meta) => {
    if (isClosed || !event?.attempt) return
    const isSnapshot = event.event === 'snapshot'
    if (!isSnapshot && meta?.epoch === position?.epoch && meta?.offset <= position?.offset) return
    position = meta
    if (isSnapshot) replace(event)
    else if (event.attempt > attempt) replace({ attempt: event.attempt, status: 'running', content: '', parts: [] })
    if (!isSnapshot && event.attempt === attempt && !hasEnded()) extend(event)
    showState()
  }

  const setLost = value => () => {
    isLost = value
    showState()
  }
  const unbind = [cable.on('disconnect', setLost(true)), cable.on('close', setLost(true))]

  const close = () => {
    isClosed = true
    for (const each of unbind) each()
    kept.unsubscribe()
  }

  // The client remembers the positions of an identifier, even after it has unsubscribed. Each follower has an identifier
  // of its own, so that it is sent a snapshot.
  const params = { id, follower: ++followers }
  const kept = keepSubscribed(cable, 'RunChannel', params, channel => {
    channel.on('message', receive)
    channel.on('connect', setLost(false))
    channel.on('disconnect', setLost(true))
    // There is no snapshot. A new subscription is rejected if the run was deleted.
    channel.on('info', ({ type }) => type === 'history_not_found' && channel.disconnect())
    channel.on('close', reason => {
      if (isClosed) return
      if (reason?.name !== 'SubscriptionRejectedError') return setLost(true)()
      end('rejected')
      close()
    })
  })
  queueMicrotask(showState)

  return {
    get state() {
      return state()
    },
    get text() {
      return text
    },
    get parts() {
      return parts
    },
    stop: () => call(kept.channel, 'stop').then(() => {}),
    close
  }
}
