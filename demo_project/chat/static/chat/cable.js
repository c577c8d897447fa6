// The page's cable, the display of its connection, and helpers for pages.
import { Line } from "./line.js";

export const line = new Line();

export const cable = AnyCable.createCable({
  protocol: "actioncable-v1-ext-json",
  websocketImplementation: line.WebSocket,
  // Shorter delays than the client's default: about half a second at first, and about five seconds at most.
  reconnectStrategy: (attempts) => Math.min(500 * 2 ** attempts, 5000) * (0.5 + Math.random()),
  // The pages handle what the client would log as a warning: rejections and history that was trimmed.
  logLevel: "error",
});

/**
 * Subscribe to a channel, and subscribe again whenever the client closes it.
 *
 * @param {string} name the name of the channel
 * @param {object} params the params of the channel
 * @param {(channel: object) => void} listen adds the listeners to each new channel
 * @param {() => void} rejected called when the server rejects the subscription
 * @returns {{channel: object}} an object with the current channel
 */
export function keepSubscribed(name, params, listen, rejected = () => {}) {
  return AnyCable.keepSubscribed(cable, name, params, (channel) => {
    channel.on("close", (error) => error?.name === "SubscriptionRejectedError" && rejected());
    listen(channel);
  });
}

/** Return whether commands can be sent over the channel now. */
export const isLive = (channel) => cable.state === "connected" && channel.state === "connected";

const WORDS = {
  connected: "Connected",
  connecting: "Connecting…",
  reconnecting: "Reconnecting…",
  offline: "Offline",
  closed: "Logged out",
};

/** Show the state of the connection, and make the buttons cut and restore it. */
export function showConnection() {
  const bar = document.querySelector("#line");
  const badge = document.querySelector("#connection");
  const cut = document.querySelector("#cut");
  const restore = document.querySelector("#restore");

  const show = (state) => {
    bar.dataset.state = badge.dataset.state = state;
    badge.textContent = WORDS[state];
  };
  const showDown = () => show(line.isCut || !navigator.onLine ? "offline" : "reconnecting");

  cable.on("connect", () => show("connected"));
  cable.on("disconnect", showDown);
  cable.on("close", () => {
    show("closed");
    location.reload(); // shows the login page if the user was logged out
  });
  window.addEventListener("offline", () => cable.state !== "connected" && showDown());

  cut.addEventListener("click", () => {
    line.cut();
    show("offline");
    cut.hidden = true;
    restore.hidden = false;
    restore.focus();
  });
  restore.addEventListener("click", () => {
    line.restore();
    show("reconnecting");
    restore.hidden = true;
    cut.hidden = false;
    cut.focus();
    cable.monitor.reconnectNow();
  });
}

let hiding;

/** Show a notice, for a few seconds unless `stays` is true. */
export function notify(text, { stays = false } = {}) {
  const notice = document.querySelector("#notice");
  clearTimeout(hiding);
  notice.textContent = text;
  notice.hidden = false;
  if (!stays) hiding = setTimeout(() => (notice.hidden = true), 6000);
}

/** Return a random id. (`crypto.randomUUID` exists only on pages from HTTPS or localhost.) */
export function randomId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Make Enter submit the form of a textarea. Shift+Enter still inserts a new line. */
export function sendOnEnter(textarea) {
  textarea.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    textarea.form.requestSubmit();
  });
}

/** Keeps a list scrolled to its end, unless the user has scrolled up. */
export class Scroller {
  constructor(element) {
    this.element = element;
    this.follows = true;
    this.top = 0;
    element.addEventListener("scroll", () => this.scrolled(), { passive: true });
    new ResizeObserver(() => this.follow()).observe(element);
    this.toEnd();
  }

  scrolled() {
    // When a notice makes the list shorter, its end moves out of view, but the user has not scrolled up.
    if (this.isAtEnd()) this.follows = true;
    else if (this.element.scrollTop < this.top) this.follows = false;
    this.top = this.element.scrollTop;
  }

  isAtEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.element;
    return scrollHeight - scrollTop - clientHeight < 40;
  }

  /** Scroll to the end after an item was added, unless the user has scrolled up. */
  follow() {
    if (this.follows) this.toEnd();
  }

  toEnd() {
    this.follows = true;
    this.element.scrollTop = this.element.scrollHeight;
  }
}
