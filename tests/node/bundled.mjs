// Connections of the bundle in the static files.
import WebSocket from 'ws'
import { createCable } from '../../reliable_cable/static/reliable_cable/cable.mjs'
import { ORIGIN, url } from './harness.mjs'

export const EXTENDED = 'actioncable-v1-ext-json'

export const open = (options = {}) =>
  createCable(url, {
    protocol: EXTENDED,
    websocketImplementation: WebSocket,
    websocketOptions: { origin: ORIGIN },
    reconnectStrategy: () => 20,
    logLevel: 'error',
    ...options
  })

export const cut = cable => cable.transport.ws?.terminate()
