// The page's cable, and what shows and cuts its connection.
import { Line } from "./line.js";

export const line = new Line();

export const cable = AnyCable.createCable({
  protocol: "actioncable-v1-ext-json",
  websocketImplementation: line.WebSocket,
  // Returns sooner than the client does by itself: half a second at first, five at most.
  reconnectStrategy: (attempts) => Math.min(500 * 2 ** attempts, 5000) * (0.5 + Math.random()),
  // What the client warns about (a rejection, history that is no longer kept), this page handles.
  logLevel: "error",
});

/**
 * Subscribe, and again whenever the client gave the channel up: when the connection breaks while a subscription is not
 * confirmed yet, the client closes that channel without a reason, and it is for the page to create it again.
 *
 * @param {string} name the channel's name
 * @param {object} params
 * @param {(channel: object) => void} listen puts the listeners on each new channel
 * @param {() => void} rejected the server refused
 * @returns {{channel: object}} what holds the channel in use
 */
export function keepSubscribed(name, params, listen, rejected = () => {}) {
  const holder = { channel: null };
  const subscribe = () => {
    const channel = cable.subscribeTo(name, { ...params });
    holder.channel = channel;
    channel.on("close", (error) => {
      if (error?.name === "SubscriptionRejectedError") rejected();
      // The client is not done with the old subscription before this event's listeners have returned.
      else queueMicrotask(subscribe);
    });
    listen(channel);
  };
  subscribe();
  return holder;
}

/** Whether the channel can carry something now. */
export const isLive = (channel) => cable.state === "connected" && channel.state === "connected";

const WORDS = {
  connected: "Connected",
  connecting: "Connecting…",
  reconnecting: "Reconnecting…",
  offline: "Offline",
  closed: "Logged out",
};

/** Show the connection's state in the bar, and let its buttons cut and restore the line. */
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
    location.reload(); // the login page, if the session is over
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

/** Show a notice for a few seconds. */
export function notify(text, { stays = false } = {}) {
  const notice = document.querySelector("#notice");
  clearTimeout(hiding);
  notice.textContent = text;
  notice.hidden = false;
  if (!stays) hiding = setTimeout(() => (notice.hidden = true), 6000);
}

/** A random id. (`crypto.randomUUID` is missing where the page did not come over HTTPS or from localhost.) */
export function randomId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Let Enter send a form's textarea; Shift+Enter begins a new line. */
export function sendOnEnter(textarea) {
  textarea.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    textarea.form.requestSubmit();
  });
}

/** A scrolling list that stays at its end, unless its reader has scrolled up. */
export class Scroller {
  constructor(element) {
    this.element = element;
    this.follows = true;
    element.addEventListener("scroll", () => (this.follows = this.isAtEnd()), { passive: true });
    new ResizeObserver(() => this.settle()).observe(element);
    this.toEnd();
  }

  isAtEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.element;
    return scrollHeight - scrollTop - clientHeight < 40;
  }

  /** Call when something was added. */
  settle() {
    if (this.follows) this.toEnd();
  }

  toEnd() {
    this.follows = true;
    this.element.scrollTop = this.element.scrollHeight;
  }
}
