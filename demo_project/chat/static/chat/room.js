// The page of a room: messages, members and typing indicators.
import { cable, isLive, keepSubscribed, notify, randomId, Scroller, sendOnEnter, showConnection } from "./cable.js";
import "./panels.js";

const room = document.querySelector("#room");
const username = room.dataset.username;

// -- messages -----------------------------------------------------------------------------------------------------

const list = document.querySelector("#messages");
const template = document.querySelector("#message-template");
const latest = document.querySelector("#latest");
const log = document.querySelector("#log");
const scroller = new Scroller(log);
/**
 * The ids of the messages on the page. A message that was committed, but had no position yet when the page was loaded, is
 * in the page and comes over the cable.
 */
const shown = new Set();
/** The ids of the messages that were received over the cable. Tests check that none is received twice. */
const received = new Set();

function decorate(item) {
  const before = item.previousElementSibling;
  item.classList.toggle("first", before?.dataset.author !== item.dataset.author);
  const time = item.querySelector("time");
  time.textContent = new Date(time.dateTime).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
}

for (const item of list.children) {
  shown.add(Number(item.dataset.id));
  decorate(item);
}

function append(message) {
  if (shown.has(message.id)) return;
  shown.add(message.id);
  const item = template.content.firstElementChild.cloneNode(true);
  item.dataset.id = message.id;
  item.dataset.author = message.author;
  item.classList.toggle("mine", message.author === username);
  item.querySelector(".author").textContent = message.author;
  item.querySelector("time").dateTime = message.created;
  item.querySelector(".text").textContent = message.text;
  list.append(item);
  decorate(item);
  latest.hidden = scroller.follows || message.author === username;
  if (message.author === username) scroller.toEnd();
  else scroller.follow();
}

latest.addEventListener("click", () => scroller.toEnd());
log.addEventListener("scroll", () => (latest.hidden ||= scroller.follows), { passive: true });

/** Messages that are held until `catchUp` has shown the earlier ones; null: `catchUp` is not running. */
let held = null;

function receive(message) {
  if (received.has(message.id)) list.dataset.repeats = Number(list.dataset.repeats) + 1;
  received.add(message.id);
  if (message.author === username) confirmSent(message.client_id);
  if (held) held.push(message);
  else append(message);
}

/** Load messages over HTTP that the cable cannot replay. */
async function catchUp() {
  if (held) return;
  held = [];
  // Concurrent transactions may commit in another order than that of their ids, so start a little earlier.
  let after = Math.max(0, ...shown) - 20;
  try {
    for (let more = true; more; ) {
      const response = await fetch(`${room.dataset.messagesUrl}?after=${after}`);
      if (!response.ok) throw new Error(`HTTP ${response.status}`);
      const page = await response.json();
      page.messages.forEach(append);
      after = page.messages.at(-1)?.id;
      more = page.more;
    }
    notify("What you missed was loaded anew.");
  } catch {
    notify("Messages are missing here. Reload the page to see them.", { stays: true });
  }
  const later = held;
  held = null;
  later.forEach(append);
}

// -- sending ------------------------------------------------------------------------------------------------------

const composer = document.querySelector("#composer");
const text = document.querySelector("#text");
const pending = document.querySelector("#pending");
/** Messages that were sent but not received back, by client id. They are sent again after a reconnect. */
const unsent = new Map();

function send(message) {
  if (!isLive(subscription.channel)) return;
  subscription.channel.perform("speak", { text: message.text, client_id: message.id }).catch(() => {});
}

function confirmSent(id) {
  unsent.get(id)?.item.remove();
  unsent.delete(id);
}

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  const written = text.value.trim();
  if (!written) return;
  const message = { id: randomId(), text: written, item: document.createElement("li") };
  message.item.textContent = written;
  unsent.set(message.id, message);
  pending.append(message.item);
  send(message);
  text.value = "";
  scroller.toEnd();
});
sendOnEnter(text);

// -- members and typing -------------------------------------------------------------------------------------------

const membersPanel = document.querySelector("#members-panel");
const members = document.querySelector("#members");
const memberCount = document.querySelector("#member-count");
const typing = document.querySelector("#typing");
const TYPING_LASTS = 3000;
const TYPING_REPEATS = 1500;
let names = {};
/** Members who are typing: the timer that ends the indicator, by member id. */
const typists = new Map();
let toldAt = 0;

/** Show the members of the room; null: they are unknown, because the connection is lost. */
function showMembers(present) {
  membersPanel.dataset.state = present ? "known" : "unknown";
  if (!present) {
    memberCount.textContent = "?";
    return;
  }
  names = Object.fromEntries(present.map(({ id, info }) => [id, info.name]));
  const sorted = Object.entries(names).sort((a, b) => a[1].localeCompare(b[1]));
  members.replaceChildren(
    ...sorted.map(([id, name]) => {
      const item = document.createElement("li");
      item.dataset.memberId = id;
      item.textContent = name === username ? `${name} (you)` : name;
      return item;
    }),
  );
  memberCount.textContent = sorted.length;
}

function showTyping() {
  const who = [...typists.keys()].map((id) => names[id]).filter(Boolean);
  typing.textContent = who.length ? `${who.join(", ")} ${who.length > 1 ? "are" : "is"} typing…` : "";
}

function stopTyping(id) {
  clearTimeout(typists.get(id));
  typists.delete(id);
  showTyping();
}

function startTyping(id) {
  clearTimeout(typists.get(id));
  typists.set(id, setTimeout(() => stopTyping(id), TYPING_LASTS));
  showTyping();
}

text.addEventListener("input", () => {
  if (!text.value || Date.now() - toldAt < TYPING_REPEATS || !isLive(subscription.channel)) return;
  toldAt = Date.now();
  subscription.channel.whisper({ type: "typing", id: room.dataset.userId });
});

// -- the cable ----------------------------------------------------------------------------------------------------

/** Whether a subscription was ever confirmed. */
let wasConfirmed = false;
/** Whether the client has closed a channel. */
let wasClosed = false;
/** The number of received messages at the time of the reconnect; null: nothing to report. */
let before = null;

cable.on("connect", ({ reconnect }) => {
  before = reconnect ? received.size : null;
});

function listen(channel) {
  channel.on("connect", () => {
    // A channel that was closed before its confirmation has no position from which the next one could be replayed.
    if (wasClosed && !wasConfirmed) catchUp();
    wasConfirmed = true;
    toldAt = 0;
    unsent.forEach(send);
  });
  channel.on("message", (message) => {
    if (message.type === "message") {
      receive(message);
      const author = Object.keys(names).find((id) => names[id] === message.author);
      if (author) stopTyping(author);
    } else if (message.type === "typing") {
      startTyping(String(message.id));
    } else if (message.type === "refused") {
      confirmSent(message.client_id);
      notify(message.reason);
    }
  });
  channel.on("presence", ({ type, id }) => {
    if (type === "leave") stopTyping(id);
  });
  AnyCable.watchPresence(channel, showMembers);
  channel.on("info", ({ type }) => {
    if (type === "history_not_found") catchUp();
    if (type === "history_received" && before !== null) {
      const missed = received.size - before;
      before = null;
      if (missed) notify(`Back again: ${missed} missed ${missed === 1 ? "message" : "messages"} came in, in order.`);
    }
  });
  channel.on("close", () => (wasClosed = true));
}

const params = { room_id: Number(room.dataset.roomId), after: room.dataset.after };
const subscription = keepSubscribed("ChatChannel", params, listen, () =>
  notify("This room is not open to you any more.", { stays: true }),
);
showConnection();

document.querySelector("#robot").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  try {
    const response = await fetch(form.action, { method: "POST", body: new FormData(form) });
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
    uncoverMessages();
    if (!isLive(subscription.channel)) notify("The robot is talking; you will hear it when the connection is back.");
  } catch {
    notify("The robot cannot be reached.");
  }
});
