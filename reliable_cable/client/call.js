// Calls of actions that return what the action returned, see Protocol: Calls.

const CALL = '$call'
const ANSWER = '$answer'

const EXPLANATIONS = {
  failed: 'the action failed',
  refused: 'the action was refused',
  unknown_action: 'the channel has no such action',
  not_subscribed: 'the channel is not subscribed',
  disconnected: 'there is no connection, or it was lost; the action may have run',
  timeout: 'there was no answer in time; the action may have run'
}

export class CallError extends Error {
  constructor(action, reason, options) {
    super(`${action}: ${EXPLANATIONS[reason] ?? reason}`, options)
    this.name = 'CallError'
    this.action = action
    this.reason = reason
  }
}

// The functions that end pending calls, by the ids of the calls.
const pending = new Map()
// The protocols of the cables whose answers do not reach the channels.
const prepared = new WeakSet()

// Ids are random, because a whisper of another client can look like an answer.
const randomId = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), byte => byte.toString(16).padStart(2, '0')).join('')

// Keep answers from the channels of a cable, so that they do not reach `message` handlers.
function takeAnswers({ protocol }) {
  if (prepared.has(protocol)) return
  prepared.add(protocol)
  const receive = protocol.receive.bind(protocol)
  protocol.receive = frame => {
    const processed = receive(frame)
    const { type, message, meta } = processed ?? {}
    if (type || meta || typeof message?.[ANSWER] !== 'string') return processed
    // The answer to a call that has ended is dropped.
    pending.get(message[ANSWER])?.(message)
  }
}

export async function call(channel, action, data = {}, { timeout = 10_000 } = {}) {
  const cable = channel.receiver
  if (!cable) throw new CallError(action, 'not_subscribed')
  if (cable.state === 'disconnected' || cable.state === 'closed') throw new CallError(action, 'disconnected')
  takeAnswers(cable)

  const id = randomId()
  const cleanups = []
  const answer = new Promise((resolve, reject) => {
    const fail = (reason, cause) => reject(new CallError(action, reason, { cause }))
    pending.set(id, ({ result, error }) => (error ? fail(error) : resolve(result)))
    const timer = setTimeout(() => fail('timeout'), timeout)
    cleanups.push(
      () => pending.delete(id),
      () => clearTimeout(timer),
      cable.on('disconnect', cause => fail('disconnected', cause)),
      cable.on('close', cause => fail('disconnected', cause)),
      channel.on('close', cause => fail('not_subscribed', cause))
    )
    channel
      .ensureSubscribed()
      // A call that has ended meanwhile must not be sent.
      .then(() => pending.has(id) && channel.perform(action, { ...data, action, [CALL]: id }))
      .catch(cause => fail('disconnected', cause))
  })
  try {
    return await answer
  } finally {
    for (const cleanup of cleanups) cleanup()
  }
}
