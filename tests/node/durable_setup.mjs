// Prepares Node for the conformance suite of Durable Streams.
import fc from "fast-check"

// Limit each random test to 3 seconds. Without a limit, the random tests take half of the time.
fc.configureGlobal({interruptAfterTimeLimit: 3000})

// Sends the cookies and the CSRF token with all requests, as a browser does.
const headers = JSON.parse(process.env.CABLE_TEST_HEADERS)
const send = globalThis.fetch

globalThis.fetch = (input, options = {}) =>
  send(input, {...options, headers: {...Object.fromEntries(new Headers(options.headers)), ...headers}})
