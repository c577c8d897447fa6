// A room with htmx: the unmodified packages htmx.org and htmx-ext-sse, or htmx 4 and its extension hx-sse. The page loads
// this script before them, so that it misses no event.
import { show } from "./html_room.js";

const listen = (name, listener) => document.addEventListener(name, listener);

/** The id of the last event of each URL. */
const lastEventIds = {};

// htmx 2: if the server responds with an error, the browser gives up, and htmx opens a new EventSource.
listen("DOMContentLoaded", () => {
  htmx.createEventSource = (url) => {
    const resumed = lastEventIds[url] ? `&last_event_id=${encodeURIComponent(lastEventIds[url])}` : "";
    return Object.assign(new EventSource(url + resumed, { withCredentials: true }), { requested: url });
  };
});

/** Return whether the page has a message. It may have been rendered with one that it is sent, too. */
function isShown(html) {
  const id = html.match(/ id="([^"]+)"/)?.[1];
  return id !== undefined && document.getElementById(id) !== null;
}

listen("htmx:sseBeforeMessage", (event) => {
  lastEventIds[event.detail.target.requested] = event.detail.lastEventId;
  if (isShown(event.detail.data)) event.preventDefault();
});
listen("htmx:sseOpen", ({ detail }) => {
  show("connected");
  detail.source.addEventListener("reject_history", () => location.reload());
});
listen("htmx:sseError", () => show("reconnecting"));

// htmx 4: events with names are events of the element.
listen("htmx:sse:before:message", (event) => {
  if (isShown(event.detail.message.data)) event.preventDefault();
});
listen("htmx:sse:after:connection", () => show("connected"));
listen("htmx:sse:before:connection", () => show("reconnecting"));
listen("htmx:sse:error", () => show("reconnecting"));
listen("count", ({ detail }) => (document.querySelector("#count").innerHTML = detail.data));
listen("reject_history", () => location.reload());

// Both.
for (const name of ["htmx:afterRequest", "htmx:after:request"]) {
  listen(name, ({ target }) => target instanceof HTMLFormElement && target.reset());
}
