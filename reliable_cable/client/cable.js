// The exports of the bundle: the public names of the unmodified @anycable/web client, and helpers for pages.
export { Channel, createCable, createConsumer, fetchTokenFromHTML } from '@anycable/web'
export { call, CallError } from './call.js'
export { keepSubscribed } from './keep_subscribed.js'
export { followRun } from './runs.js'
export { watchPresence } from './watch_presence.js'
