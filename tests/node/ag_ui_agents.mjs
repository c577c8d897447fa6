// Agents of `@ag-ui/client`, which a test in Python drives. It writes a line of JSON for each command, and reads a line
// with the result. The arguments are the folder of the scripts of docs/llm.md, and the cookies.
import { createInterface } from 'node:readline'
import { pathToFileURL } from 'node:url'

// The scripts of docs/llm.md, one of which has the class `ConversationAgent`.
const folder = pathToFileURL(`${process.argv[2]}/`)
const { ConversationAgent } = await import(new URL('conversation_agent.js', folder))

// Unlike Node, a page has cookies, and an origin for the paths of requests.
const cookie = process.argv[3]
const elements = new Map()
const element = selector => {
  if (!elements.has(selector)) elements.set(selector, {})
  return elements.get(selector)
}
globalThis.document = { cookie, querySelector: element }
const { fetch } = globalThis
let origin
globalThis.fetch = (path, init) =>
  fetch(new URL(path, origin), { ...init, headers: { ...init.headers, Cookie: cookie } })

const agents = new Map()
const warnings = []
console.warn = (...values) => warnings.push(values.join(' '))
console.error = () => {} // errors of runs, which the commands return
// After a lost connection, the client cancels the body, and does not handle the error of the cancellation. Browsers
// only log this error.
process.on('unhandledRejection', error => {
  if (error.message !== 'terminated') throw error
})

const answerOf = agent => agent.messages.filter(message => message.role === 'assistant')
const textOf = agent => answerOf(agent).map(message => message.content ?? '').join('')

/** Run or connect an agent. Return nothing: `end` waits for the end. */
function begin(state, method) {
  const { agent } = state
  state.events = []
  state.error = null
  const subscriber = { onEvent: ({ event }) => void state.events.push(event) }
  state.done = agent[method]({}, subscriber).then(
    () => {},
    error => {
      state.error = { message: String(error.message), status: error.status, payload: error.payload }
    }
  )
}

const commands = {
  make(_, { name, url, thread, messages = [] }) {
    const agent = new ConversationAgent({ url, threadId: thread, initialMessages: messages })
    agents.set(name, { agent, events: [], error: null, done: Promise.resolve() })
  },
  ask({ agent, ...state }, { name, id, text }) {
    agent.addMessage({ id, role: 'user', content: text })
    begin(agents.get(name), 'runAgent')
  },
  run: state => begin(state, 'runAgent'),
  connect: state => begin(state, 'connectAgent'),
  move({ agent }, { url }) {
    agent.url = url
  },
  async text({ agent, events }, { length }) {
    const deadline = Date.now() + 20_000
    while (textOf(agent).length < length) {
      if (Date.now() > deadline) throw new Error(`timeout after ${JSON.stringify(events.slice(-2))}`)
      await new Promise(resolve => setTimeout(resolve, 5))
    }
    return textOf(agent)
  },
  stop({ agent }, { url }) {
    origin = url
    return agent.stop()
  },
  /** Load the page of docs/llm.md. */
  open(_, { url, thread }) {
    origin = url
    element('#chat').textContent = JSON.stringify({ threadId: thread, initialMessages: [] })
    return import(new URL('page.js', folder)).then(() => null)
  },
  click(_, { button, question }) {
    element('#question').value = question
    element(button).onclick()
  },
  async see(_, { length, former }) {
    const seen = () => element('#answer').textContent ?? ''
    while (seen().length < length || seen() === former) await new Promise(resolve => setTimeout(resolve, 5))
    return seen()
  },
  abort: ({ agent }) => agent.abortRun(),
  async end(state) {
    await state.done
    return { messages: state.agent.messages, events: state.events, error: state.error, warnings }
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line)
  let answer
  try {
    answer = { result: (await commands[command.do](agents.get(command.name), command)) ?? null }
  } catch (error) {
    answer = { error: String(error.stack) }
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`)
}
