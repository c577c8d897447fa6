// Connections of the bundle in the static files.
import { createCable } from '../../reliable_cable/static/reliable_cable/cable.mjs'
import { clientOptions, EXTENDED, url } from './harness.mjs'

export const open = (options = {}) => createCable(url, { protocol: EXTENDED, ...clientOptions(), ...options })
