// Scenarios of followRun: a process of the server writes runs, as this script tells it to.
import { readFile } from 'node:fs/promises'
import { CallError, followRun } from '../../reliable_cable/static/reliable_cable/cable.mjs'
import { open } from './bundled.mjs'
import { broadcast, call, cut, equal, eventually, EXTENDED, range, runAll } from './harness.mjs'

const BASE = 'actioncable-v1-json'
const WORDS = range(1, 20).map(number => `word${number} `)
const TEXT = WORDS.join('')

/** Follow a run, and record what the callbacks receive. */
function follow(cable, id) {
  const seen = { begins: 0, joined: '', parts: [], states: [], ends: [] }
  const run = followRun(cable, id, {
    onText(text, added) {
      if (added === null) seen.begins += 1
      seen.joined = added === null ? text : seen.joined + added
      equal(seen.joined, text, 'the text and what was added')
    },
    onPart(part, parts) {
      equal(part, parts.at(-1), 'the part')
      seen.parts = parts
    },
    onState: state => seen.states.push(state),
    onEnd: end => seen.ends.push(end)
  })
  return Object.assign(seen, { run })
}

/** Return the id of a new run. */
const make = () => call('make_run', [])
const begin = run => call('begin_run', [run])
const write = (run, ...items) => call('add_to_run', [run, items])
const end = (run, error = '') => call('end_run', [run, error])

async function start() {
  const run = await make()
  await begin(run)
  return run
}

/** Open a connection, start a run, and follow it. */
async function startAndFollow() {
  const cable = open()
  const id = await start()
  return { cable, id, seen: follow(cable, id) }
}

/** Write a text, and wait until a reader has it. */
async function say(id, seen, text) {
  await write(id, text)
  await eventually(() => seen.run.text === text, 'text')
}

const hasText = seen => eventually(() => seen.run.text.length > 0, () => `text: ${seen.states}`)

/** Write texts with pauses, so that each is broadcast by itself. */
async function writeSlowly(run, texts) {
  for (const text of texts) {
    await write(run, text)
    await new Promise(resolve => setTimeout(resolve, 5))
  }
}

const hasEnded = (seen, attempts = 1) => eventually(() => seen.ends.length >= attempts, () => `the end: ${seen.states}`)

const scenarios = {
  ...Object.fromEntries(
    [EXTENDED, BASE].flatMap(protocol => [
      [
        `${protocol}: early and late readers have the same answer`,
        async () => {
          const [cable, other] = [open({ protocol }), open({ protocol })]
          const id = await make()
          const early = follow(cable, id)
          await eventually(() => early.run.state === 'queued', 'the queued run')
          await begin(id)
          await writeSlowly(id, WORDS.slice(0, 10))
          await eventually(() => early.run.text.length > 0, 'text')
          const late = follow(other, id)
          await eventually(() => late.run.state === 'running', 'the snapshot')
          await writeSlowly(id, WORDS.slice(10))
          await end(id)
          const after = follow(other, id)
          for (const seen of [early, late, after]) {
            await hasEnded(seen)
            equal([seen.run.text, seen.run.state, seen.begins], [TEXT, 'completed', 1], 'the answer')
            equal(seen.ends, [{ status: 'completed', error: '', usage: {}, text: TEXT, parts: [] }], 'the end')
          }
          equal(early.states, ['connecting', 'queued', 'running', 'completed'], 'the states of the early reader')
          equal(after.states, ['connecting', 'completed'], 'the states of the last reader')
          cable.disconnect()
          other.disconnect()
        }
      ],
      [
        `${protocol}: a reader whose connection breaks has the whole answer`,
        async () => {
          const cable = open({ protocol })
          const id = await start()
          const seen = follow(cable, id)
          for (const number of range(0, 19)) {
            if (number % 6 === 5) {
              await hasText(seen)
              cut(cable)
            }
            await writeSlowly(id, [WORDS[number]])
          }
          await end(id)
          await hasEnded(seen)
          equal([seen.run.text, seen.run.state], [TEXT, 'completed'], 'the answer')
          equal(seen.states.includes('disconnected'), true, 'the break was shown')
          await eventually(() => cable.state === 'connected', 'the connection')
          await writeSlowly(await start(), ['.'])
          equal(seen.ends.length, 1, 'the ends')
          cable.disconnect()
        }
      ]
    ])
  ),

  async 'a reader whose history was lost while it was away gets a snapshot'() {
    const { cable, id, seen } = await startAndFollow()
    await writeSlowly(id, WORDS.slice(0, 2))
    await hasText(seen)
    cable.disconnect()
    equal(seen.run.state, 'disconnected', 'the state')
    await writeSlowly(id, WORDS.slice(2, 10))
    await call('forget', [`run:${id}`])
    await writeSlowly(id, WORDS.slice(10))
    await cable.connect()
    await end(id)
    await hasEnded(seen)
    equal([seen.run.text, seen.begins > 1], [TEXT, true], 'the answer')
    cable.disconnect()
  },

  async 'parts are at their places in the text'() {
    const cable = open()
    const id = await start()
    const early = follow(cable, id)
    await eventually(() => early.run.state === 'running', 'the subscription')
    const source = { type: 'source', url: 'https://example.com', title: '' }
    const reason = text => ({ type: 'reasoning', text })
    await write(id, reason('Let me '))
    await eventually(() => early.parts.length === 1, 'the reasoning')
    await write(id, reason('see.'), '😀 yes', source, ' and', { type: 'new', value: 1 }, reason('So?'))
    await eventually(() => early.parts.length === 4, 'the parts')
    await end(id)
    const late = follow(cable, id)
    const parts = [
      { type: 'reasoning', text: 'Let me see.', at: 0 },
      { ...source, at: '😀 yes'.length },
      { type: 'new', value: 1, at: '😀 yes and'.length },
      { type: 'reasoning', text: 'So?', at: '😀 yes and'.length }
    ]
    for (const seen of [early, late]) {
      await hasEnded(seen)
      equal([seen.parts, seen.run.parts, seen.ends[0].parts], [parts, parts, parts], 'the parts')
    }
    cable.disconnect()
  },

  async 'a long answer, which is larger than what may be pending for a connection'() {
    const cables = [open(), open()]
    const id = await start()
    const early = follow(cables[0], id)
    const piece = 'é "quoted"\n'.repeat(6000)
    const text = piece.repeat(20)
    for (const _ of range(1, 20)) await write(id, piece)
    await eventually(() => early.run.text.length === text.length, () => `the text: ${early.run.text.length}`)
    const late = follow(cables[1], id)
    await eventually(() => late.run.text.length === text.length, () => `the snapshot: ${late.run.text.length}`)
    await end(id)
    for (const seen of [early, late]) {
      await hasEnded(seen)
      equal([seen.run.text === text, seen.run.state], [true, 'completed'], 'the answer')
    }
    equal(late.begins, 1, 'the snapshots')
    for (const cable of cables) cable.disconnect()
  },

  async 'a run fails with a message, and the next attempt begins anew'() {
    const { cable, id, seen } = await startAndFollow()
    await write(id, 'Well', { type: 'data', name: 'n', data: 1 })
    await eventually(() => seen.parts.length === 1, 'the part')
    await end(id, 'The model is away.')
    await hasEnded(seen)
    equal(seen.ends[0].error, 'The model is away.', 'the message')
    equal([seen.run.state, seen.run.text, seen.run.parts.length], ['failed', 'Well', 1], 'what stays')
    const stream = `run:${id}`
    await broadcast(stream, { event: 'chunk', attempt: 1, content: 'after the end' })
    await call('requeue_run', [id])
    await begin(id)
    await eventually(() => seen.run.state === 'running', 'the second attempt')
    equal([seen.run.text, seen.run.parts], ['', []], 'the beginning of the second attempt')
    await broadcast(stream, { event: 'chunk', attempt: 1, content: 'a former attempt' })
    await broadcast(stream, { event: 'error', attempt: 1, message: 'a former attempt' })
    await broadcast(stream, { event: 'new event', attempt: 2 })
    await write(id, 'Yes')
    await end(id)
    await hasEnded(seen, 2)
    equal([seen.run.state, seen.run.text, seen.ends.length], ['completed', 'Yes', 2], 'the second attempt')
    cable.disconnect()
  },

  async 'a run whose writer dies fails'() {
    const { cable, id, seen } = await startAndFollow()
    await say(id, seen, 'Well')
    await call('abandon_run', [id])
    await hasEnded(seen)
    equal([seen.run.state, seen.run.text], ['failed', 'Well'], 'the end')
    equal(seen.ends[0].error, 'The answer was interrupted. Please try again.', 'the message')
    cable.disconnect()
  },

  async 'a reader stops a run'() {
    const cable = open()
    const id = await start()
    const [seen, other] = [follow(cable, id), follow(cable, id)]
    await say(id, seen, 'Well')
    await seen.run.stop()
    await eventually(() => call('is_run_stopped', [id]), 'the writer notices')
    await end(id)
    for (const each of [seen, other]) {
      await hasEnded(each)
      equal([each.run.state, each.run.text], ['stopped', 'Well'], 'the end')
    }
    await seen.run.stop()
    seen.run.close()
    const error = await seen.run.stop().catch(reason => reason)
    equal([error instanceof CallError, error.reason], [true, 'not_subscribed'], 'stop() after close()')
    cable.disconnect()
  },

  async 'a queued run can be stopped'() {
    const cable = open()
    const seen = follow(cable, await make())
    await seen.run.stop()
    await hasEnded(seen)
    equal([seen.run.state, seen.run.text], ['stopped', ''], 'the end')
    cable.disconnect()
  },

  async 'unknown runs are rejected'() {
    const cable = open()
    for (const id of ['00000000-0000-4000-8000-000000000000', 'no id', '']) {
      const seen = follow(cable, id)
      await hasEnded(seen)
      equal(seen.ends, [{ status: 'rejected', error: '', usage: {}, text: '', parts: [] }], 'the end')
      equal(seen.states, ['connecting', 'rejected'], 'the states')
    }
    cable.disconnect()
  },

  async 'a run that was deleted is rejected'() {
    const { cable, id, seen } = await startAndFollow()
    await say(id, seen, 'Well')
    await call('abandon_run', [id])
    await call('delete_run', [id])
    cut(cable)
    await hasEnded(seen)
    equal([seen.run.state, seen.run.text], ['rejected', 'Well'], 'the end')
    cable.disconnect()
  },

  async 'a reader whose run was deleted is told when its history is lost'() {
    const { cable, id, seen } = await startAndFollow()
    await say(id, seen, 'Well')
    await call('abandon_run', [id])
    await call('delete_run', [id])
    await call('forget', [`run:${id}`])
    await hasEnded(seen)
    equal(seen.run.state, 'rejected', 'the end')
    cable.disconnect()
  },

  async 'a reader whose history is lost gets a snapshot'() {
    const { cable, id, seen } = await startAndFollow()
    await writeSlowly(id, WORDS.slice(0, 10))
    await hasText(seen)
    await call('forget', [`run:${id}`])
    await writeSlowly(id, WORDS.slice(10))
    await end(id)
    await hasEnded(seen)
    equal([seen.run.text, seen.run.state, seen.ends.length], [TEXT, 'completed', 1], 'the answer')
    cable.disconnect()
  },

  async 'frames that arrive twice are read once'() {
    const cable = open()
    cable.transport.on('data', raw => 'offset' in JSON.parse(raw) && cable.handleIncoming(raw))
    const id = await start()
    const seen = follow(cable, id)
    await eventually(() => seen.run.state === 'running', 'the subscription')
    await writeSlowly(id, WORDS)
    await end(id)
    await hasEnded(seen)
    equal([seen.run.text, seen.ends.length], [TEXT, 1], 'the answer')
    cable.disconnect()
  },

  async 'each reader of a page has the whole answer, and callbacks of a closed one are not called'() {
    const cable = open()
    const id = await start()
    const closed = follow(cable, id)
    await say(id, closed, 'One ')
    closed.run.close()
    const again = follow(cable, id)
    await eventually(() => again.run.text === 'One ', 'the snapshot')
    const second = follow(cable, id)
    await write(id, 'two')
    await end(id)
    for (const seen of [again, second]) {
      await hasEnded(seen)
      equal([seen.run.text, seen.begins], ['One two', 1], 'the answer')
    }
    equal([closed.joined, closed.ends], ['One ', []], 'the closed reader')
    cable.disconnect()
  },

  async 'the page "Answers of language models" shows an answer, and stops it'() {
    const page = await readFile(new URL('../../docs/llm.md', import.meta.url), 'utf8')
    const [, script] = page.match(/^```js\n(.*?)^```$/ms)
    const id = await start()
    const elements = {
      '#answer': { dataset: { run: id }, textContent: '', append: text => (elements['#answer'].textContent += text) },
      '#note': {},
      '#stop': {}
    }
    const cable = open()
    const AnyCable = { createCable: () => cable, followRun }
    new Function('AnyCable', 'document', script)(AnyCable, { querySelector: name => elements[name] })
    await writeSlowly(id, WORDS)
    await eventually(() => elements['#answer'].textContent === TEXT, 'the text')
    equal(elements['#note'].textContent, 'running', 'the state')
    await elements['#stop'].onclick()
    await eventually(() => call('is_run_stopped', [id]), 'the writer notices')
    await end(id)
    await eventually(() => elements['#note'].textContent === 'stopped', 'the end')
    cable.disconnect()
  },

  async 'a reader without a connection says so'() {
    const cable = open()
    await cable.connect()
    const id = await start()
    cable.disconnect()
    const seen = follow(cable, id)
    await eventually(() => seen.states.length > 0, 'the state')
    equal(seen.states, ['disconnected'], 'the state')
    const error = await seen.run.stop().catch(reason => reason)
    equal(error.reason, 'disconnected', 'stop()')
    await cable.connect()
    await eventually(() => seen.run.state === 'running', 'the snapshot')
    await end(id)
    await hasEnded(seen)
    cable.disconnect()
  }
}

await runAll(scenarios)
