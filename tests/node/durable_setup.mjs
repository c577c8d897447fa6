// Sends the cookies and the CSRF token of a user with all requests of the conformance suite, as a browser does.
const headers = JSON.parse(process.env.CABLE_TEST_HEADERS)
const send = globalThis.fetch

globalThis.fetch = (input, options = {}) =>
  send(input, {...options, headers: {...Object.fromEntries(new Headers(options.headers)), ...headers}})
