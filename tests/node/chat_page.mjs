// A page with `useChat`. `bundle_chat_page.mjs` makes one file of it.
import { createElement as h } from 'react'
import { createRoot } from 'react-dom/client'
import { useConversation } from 'use-conversation' // the block of docs/llm.md

const { id, messages } = JSON.parse(document.querySelector('#chat').textContent)

const part = (part, index) => {
  if (part.type === 'text' || part.type === 'reasoning') return h('span', { key: index, 'data-part': part.type }, part.text)
  if (part.type === 'source-url') return h('a', { key: index, href: part.url, 'data-part': part.type }, part.title)
  return h('code', { key: index, 'data-part': part.type }, JSON.stringify(part.output ?? part.data ?? null))
}

function Page() {
  const { chat, stop } = useConversation(id, messages)
  const button = (name, onClick) => h('button', { 'data-testid': name, onClick }, name)
  return h(
    'main',
    { 'data-testid': 'page', 'data-status': chat.status, 'data-error': chat.error?.message ?? '' },
    h(
      'ol',
      null,
      chat.messages.map(message =>
        h('li', { key: message.id, 'data-role': message.role, 'data-usage': JSON.stringify(message.metadata ?? null) },
          message.parts.filter(({ type }) => type !== 'step-start').map(part))
      )
    ),
    button('ask', () => chat.sendMessage({ text: 'why?' })),
    button('stop', stop),
    button('leave', chat.stop),
    button('resume', () => chat.resumeStream())
  )
}

createRoot(document.querySelector('#root')).render(h(Page))
