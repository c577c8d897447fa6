// Reads lists of chunks as JSON, and writes the messages that the AI SDK builds from them, as `useChat` does.
import { readUIMessageStream } from 'ai'
import { text } from 'node:stream/consumers'

const built = []
for (const chunks of JSON.parse(await text(process.stdin))) {
  let last = null
  const stream = new ReadableStream({
    start(controller) {
      chunks.forEach(chunk => controller.enqueue(chunk))
      controller.close()
    }
  })
  for await (const message of readUIMessageStream({ stream, terminateOnError: true })) last = message
  built.push(last)
}
process.stdout.write(JSON.stringify(built))
