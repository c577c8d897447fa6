// Shared by the pages whose messages are HTML that the server has rendered.

const WORDS = { connected: "Connected", connecting: "Connecting…", reconnecting: "Reconnecting…" };
const log = document.querySelector("#log");

/** Show the state of the connection. */
export function show(state) {
  const badge = document.querySelector("#connection");
  badge.dataset.state = state;
  badge.textContent = WORDS[state];
}

const toEnd = () => (log.scrollTop = log.scrollHeight);
new MutationObserver(toEnd).observe(document.querySelector("#messages"), { childList: true });
toEnd();
